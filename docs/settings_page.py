"""Writes docs/settings.md, the page of all settings, from the settings themselves: `python docs/settings_page.py`."""

import inspect
from pathlib import Path

from idefics_chat.server.settings import SECTIONS, Settings
from idefics_chat.server.settings_sources import described, flag_of, shown_value

HEAD = """# Settings

Each can stand in three places. A flag of `idefics-chat serve` wins over the environment, the environment over a TOML
file, and the file over the default:

| place | `max_frame_bytes` there |
|---|---|
| flag | `--max-frame-bytes 1000000` |
| environment | `IDEFICS_CHAT_MAX_FRAME_BYTES=1000000` |
| file, named by `--config` or `IDEFICS_CHAT_CONFIG` | `max_frame_bytes = 1000000` |

A list is a flag that is repeated, a variable with commas, an array in the file. `idefics-chat config show` shows every
setting and where its value comes from, `idefics-chat config check` whether serve could start with them. A value that
cannot be used, and a name in the file that is no setting, keeps the server from starting. The commands that open the
database (`keys`, `owners`, `conversations`, `db`) and those that load a model take the file too. Unknown names in the
environment are left alone: container platforms set some with the same prefix.

Sizes are in bytes and times in seconds. The limits of a key's name and of an address are turned off with 0; other
limits are above 0, unless their line says what 0 does. Limits of a key are those of the name it was made for: all keys
of one name share them.
"""


def page() -> str:
    """The page's text."""
    sections = (f"## {inspect.getdoc(section)}\n\n{_table(list(section.model_fields))}" for section in SECTIONS)
    return "\n".join((HEAD, *sections))


def _table(names: list[str]) -> str:
    rows = "".join(f"{_row(name)}\n" for name in names)
    return f"| setting | flag | default | what it is |\n|---|---|---|---|\n{rows}"


def _row(name: str) -> str:
    field = Settings.model_fields[name]
    shown = shown_value(name, field.default)
    default = f"`{shown.lower() if isinstance(field.default, bool) else shown}`" if shown else ""
    return f"| `{name}` | `{flag_of(name)}` | {default} | {described(name)} |"


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(page())
