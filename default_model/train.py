"""Makes the checkpoint from nothing: `python -m idefics_chat.default_model.train --output DIR [--device auto]`.

Three steps, each kept in DIR and skipped when it is there: pictures are drawn, the vision part learns to see, the text
part learns to speak of what it saw. Interrupted, the same command goes on (vision with its weights so
far but a new clock, text where it was). Needs about 6 GB of memory and 1.5 GB of
disk; on one CPU core three hours with the default times (made on one with bf16 units, which count for much), on an
accelerator less (`--vision-minutes`, `--text-minutes`). Times are those of the processor: a training that waits for its
core, or is stopped for a while, learns as much in the same minutes. `--go-on-from FOLDER` begins with a checkpoint's
weights; give `--vision-rate` and `--text-rate` about a third of the usual then, and `--vision-minutes 0` to keep what
it sees.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer, GenerationConfig, IdeficsForVisionText2Text

from idefics_chat.default_model.architecture import BOS, END, EOS, FAKE, IMAGE, PAD, new_model
from idefics_chat.default_model.language import TEXT_RATE, Progress, train_language
from idefics_chat.default_model.scene_table import SceneTable
from idefics_chat.default_model.scenes import HELD_OUT
from idefics_chat.default_model.tokenizer import save_processor
from idefics_chat.default_model.vision import VISION_RATE, load_pool, train_vision


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the checkpoint and what is needed to resume"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--scenes", type=int, default=40_000, help="pictures drawn for training (twice that with mirrors)"
    )
    parser.add_argument("--vision-minutes", type=float, default=20.0)
    parser.add_argument("--text-minutes", type=float, default=150.0)
    parser.add_argument(
        "--vision-rate", type=float, default=VISION_RATE, help="the vision part's highest learning rate"
    )
    parser.add_argument("--text-rate", type=float, default=TEXT_RATE, help="the text part's highest learning rate")
    parser.add_argument("--go-on-from", type=Path, help="checkpoint whose weights to start from")
    parser.add_argument("--hold-out", action="store_true", help=f"train without {len(HELD_OUT)} colour-shape pairs")
    return parser.parse_args()


def keep_settings(args: argparse.Namespace) -> None:
    """Notes in the folder what its pictures follow from. Raises SystemExit where it holds those of other settings:
    their latents would be taught as those of other scenes."""
    told = {"seed": args.seed, "scenes": args.scenes, "hold_out": args.hold_out}
    kept = args.output / "settings.json"
    if kept.exists() and (before := json.loads(kept.read_text())) != told:
        raise SystemExit(f"{args.output} was begun with {before}, not {told}: give the same, or another --output.")
    kept.write_text(json.dumps(told) + "\n")


def keep_processor(folder: Path, go_on_from: Path | None, taught: bool) -> None:
    """Has tokenizer and processor lie in the folder: those there are, those of the weights to start from, or new ones.
    Raises SystemExit where there are none any more for what was `taught`: another tokenizer's ids mean other words."""
    if (folder / "tokenizer.json").exists():
        return
    if taught:
        raise SystemExit(f"{folder} lacks the tokenizer that text was taught with; put it back, or begin anew.")
    if go_on_from:
        AutoProcessor.from_pretrained(go_on_from).save_pretrained(folder)  # type: ignore[no-untyped-call]
    else:
        save_processor(folder)


def pick_device(name: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def seen_model(args: argparse.Namespace, pool_path: Path, device: torch.device) -> IdeficsForVisionText2Text:
    """The model after stage one, from `vision.pt` if that is there."""
    model = new_model(args.seed)
    model.to(device)  # type: ignore[arg-type]
    model.set_attn_implementation("eager")  # the fused CPU kernel is slower than this at these sizes
    if args.go_on_from:
        model.load_state_dict(load_file(args.go_on_from / "model.safetensors"))
    kept, done = args.output / "vision.pt", args.output / "vision.done"
    if kept.exists():
        model.load_state_dict(torch.load(kept, map_location=device), strict=False)
    if not done.exists():
        excluded = HELD_OUT if args.hold_out else frozenset()
        pool = load_pool(pool_path, args.seed, args.scenes, excluded)
        save = partial(save_vision, model, kept)
        right = train_vision(model, pool, args.vision_minutes * 60, device, save, peak=args.vision_rate)
        done.write_text(f"{right:.4f}\n")
    return model


def save_vision(model: IdeficsForVisionText2Text, path: Path) -> None:
    state = {n: t for n, t in model.state_dict().items() if "vision_model" in n or "perceiver" in n}
    torch.save(state, path)


def shippable(model: IdeficsForVisionText2Text) -> IdeficsForVisionText2Text:
    """A bf16 copy on the CPU."""
    copy = IdeficsForVisionText2Text(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16)  # type: ignore[arg-type]
    copy.eval()  # type: ignore[no-untyped-call]
    return copy


def export(model: IdeficsForVisionText2Text, output: Path) -> None:
    """Writes weights and generation config; tokenizer and processor lie there already."""
    ready = shippable(model)
    ready.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=BOS, eos_token_id=[END, EOS], pad_token_id=PAD, bad_words_ids=[[FAKE], [IMAGE]], do_sample=False
    )
    ready.save_pretrained(output / "checkpoint")


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    args.output.mkdir(parents=True, exist_ok=True)
    keep_settings(args)
    excluded = HELD_OUT if args.hold_out else frozenset()
    pool_path, text_path = args.output / "pictures.npy", args.output / "text.pt"
    keep_processor(args.output / "checkpoint", args.go_on_from, taught=text_path.exists())
    tokenizer = AutoTokenizer.from_pretrained(args.output / "checkpoint")
    model = seen_model(args, pool_path, device)
    model.load_state_dict({n: p.to(torch.bfloat16).float() for n, p in model.state_dict().items()})
    pool = load_pool(pool_path, args.seed, args.scenes, excluded)
    table = SceneTable.of(model, pool, device, args.output / "latents.pt")
    resumed = None
    if text_path.exists():
        kept = torch.load(text_path, map_location=device, weights_only=True)
        model.load_state_dict(kept["model"])
        resumed = Progress(**kept["progress"])

    def save(progress: Progress) -> None:
        state = {"model": model.state_dict(), "progress": dataclasses.asdict(progress)}
        torch.save(state, text_path.with_suffix(".new"))
        text_path.with_suffix(".new").rename(text_path)
        export(model, args.output)

    train_language(model, tokenizer, table, args.text_minutes * 60, device, save, resumed, peak=args.text_rate)


if __name__ == "__main__":
    main()
