// The AsyncAPI document in a file, judged by AsyncAPI's own parser.
import { readFileSync } from "node:fs";

import { Parser } from "@asyncapi/parser";

const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], "utf8"));
const errors = diagnostics.filter((found) => found.severity === 0).map((found) => found.message);
console.log(JSON.stringify({ read: document !== undefined, errors }));
