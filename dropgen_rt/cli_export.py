"""The command export."""

from pathlib import Path
from typing import Any

import click

from dropgen_rt.components import COMPONENTS
from dropgen_rt.errors import UsageError
from dropgen_rt.store import check_name
from dropgen_rt.survey import require_extra
from dropgen_rt.windows import BLENDS, PLACEMENTS

FILE = click.Path(path_type=Path)
OPSET = 20


class WindowCommand(click.Command):
    """``--window`` takes three numbers, or the one word dynamic, which is another spelling of ``--dynamic``."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        given: list[str] = []
        for word in args:
            if word == "dynamic" and given[-1:] == ["--window"]:
                given[-1] = "--dynamic"
            else:
                given.append("--dynamic" if word == "--window=dynamic" else word)
        return super().parse_args(context, given)


@click.command(cls=WindowCommand)
@click.argument("checkpoint", type=FILE, required=False)
@click.option("-o", "--out", type=FILE, required=True, help="model.onnx to write.")
@click.option("--name", help="The model's name; by default the file's.")
@click.option(
    "--window", type=click.IntRange(1, 4096), nargs=3, metavar="Z Y X|dynamic",
    help="Voxels; by default the training window. dynamic: any multiples of the network's stride.",
)  # fmt: skip
@click.option("--dynamic", is_flag=True, help="As --window dynamic, where --window says which one is usual.")
@click.option(
    "--weights", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True,
    help="How kernels are stored; fp16 halves the file, and every engine still computes in fp32.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32", show_default=True,
    help="Type of the graph's body; leave it at fp32 to choose when the engine is built.",
)  # fmt: skip
@click.option(
    "--overlap", type=float, default=0.5, show_default=True,
    help="Share of a window that its neighbour covers at inference; 0.25 takes half the time, see docs/performance.md.",
)  # fmt: skip
@click.option(
    "--placement", type=click.Choice(PLACEMENTS), default="scan", show_default=True,
    help="Where windows lie at inference: over the whole scan, or over what is not air, see docs/performance.md.",
)  # fmt: skip
@click.option(
    "--blend", type=click.Choice(BLENDS), default="constant", show_default=True,
    help="How windows join at inference; gaussian hides their seams, see docs/training.md.",
)  # fmt: skip
@click.option(
    "--components", type=click.Choice(COMPONENTS), default="all", show_default=True,
    help="Which connected components of all that is labelled stay at inference, see docs/training.md.",
)  # fmt: skip
@click.option("--opset", type=int, default=OPSET, show_default=True, help="ONNX operator set.")
@click.option("--golden", type=FILE, multiple=True, metavar="SCAN", help="Take the golden windows from this scan.")
@click.option("--torchscript", type=FILE, help="Another network instead of CHECKPOINT: TorchScript, with --manifest.")
@click.option("--onnx", type=FILE, help="Another network instead of CHECKPOINT: ONNX, with --manifest.")
@click.option("--manifest", type=FILE, help="TOML that tells of another network; see docs/model-format.md.")
def export(
    checkpoint: Path | None, out: Path, torchscript: Path | None, onnx: Path | None, manifest: Path | None, **given: Any
) -> None:
    """Write CHECKPOINT, or another network, as one fused ONNX graph that carries its manifest."""
    if [checkpoint, torchscript, onnx].count(None) != 2 or (checkpoint is None) != (manifest is not None):
        raise UsageError(
            "give one of CHECKPOINT, --torchscript FILE and --onnx FILE, the last two with --manifest FILE"
        )
    if checkpoint is None:
        _refuse_for_others(given)
    require_extra("export")
    from dropgen_rt.export.foreign import export_onnx, export_torchscript
    from dropgen_rt.export.to_onnx import ExportOptions
    from dropgen_rt.export.to_onnx import export as write

    options = ExportOptions(**given)
    if checkpoint is not None:
        made, rows = write(checkpoint, out, options)
    else:
        assert manifest is not None
        source, convert = (torchscript, export_torchscript) if torchscript is not None else (onnx, export_onnx)
        assert source is not None
        made, rows = convert(source, manifest, out, options)
    click.echo(f"{made.name}: {len(made.labels)} labels, window {made.window}, spacing {made.spacing_mm} mm")
    try:
        check_name(made.name)
    except UsageError as error:  # infer takes the file all the same
        click.echo(f"warning: {error}; build-engine will need --name")
    for row in rows:
        click.echo(row.text())
    if not given["golden"]:
        click.echo(
            "golden windows are synthetic; --golden SCAN lets build-engine judge a narrow precision on real ones"
        )
    click.echo(f"wrote {out}")


def _refuse_for_others(given: dict[str, Any]) -> None:
    """Another network is written as it is. Raises UsageError for an option that would change it."""
    fixed = {
        "window": None, "dynamic": False, "weights": "fp32", "overlap": 0.5, "placement": "scan", "blend": "constant",
        "components": "all", "opset": OPSET,
    }  # fmt: skip
    changed = [f"--{name}" for name, value in fixed.items() if given[name] != value]
    if changed:
        raise UsageError(
            f"{', '.join(changed)}: for a CHECKPOINT only; window, overlap, placement, blend and components of another "
            "network are what its --manifest says, its weights and operators are its own"
        )
