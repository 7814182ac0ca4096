"""The command line: parse, call, print. Heavy imports wait inside the commands that need them."""

import sys
from pathlib import Path

import click

from dropgen_rt import cli_engines, cli_export, cli_models, cli_train
from dropgen_rt.cli_bench import bench
from dropgen_rt.cli_inspect import inspect
from dropgen_rt.components import COMPONENTS, Components
from dropgen_rt.errors import DropgenError, ResourceError
from dropgen_rt.outputs import FORMATS, parse_formats
from dropgen_rt.survey import require_extra
from dropgen_rt.windows import BLENDS, PLACEMENTS, Blend, Placement

FILE = click.Path(path_type=Path)


class Refusing(click.Group):
    """A group whose commands end a DropgenError with one line and its exit code, without a traceback."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except DropgenError as error:
            click.echo(f"error: {error}", err=True)
            context.exit(error.exit_code)
        except MemoryError as error:
            reason = str(error) or "memory ran out"
            click.echo(f"error: {reason}; close other programs or give a smaller scan", err=True)
            context.exit(ResourceError.exit_code)


@click.group(cls=Refusing, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dropgen-rt")
def main() -> None:
    """From trained DropGen 3D segmentation models to labels on a scan's own grid."""


main.add_command(inspect)


@main.command()
@click.argument("scans", nargs=-1, required=True, type=FILE, metavar="SCAN…")
@click.option("-o", "--out", type=FILE, help="Existing folder for the results; by default beside each scan.")
@click.option("--model", metavar="NAME|PATH", help="Model to run; by default the one that build-engine made default.")
@click.option(
    "--reference",
    is_flag=True,
    help="As published: windows over the whole scan, overlap 0.5, constant blend, arg-max on the working grid.",
)
@click.option("--overlap", type=float, help="Share of a window that its neighbour covers again.")
@click.option("--blend", type=click.Choice(BLENDS), help="How overlapping windows are weighed.")
@click.option(
    "--placement", type=click.Choice(PLACEMENTS), help="Where windows lie: over the whole scan, or what is not air."
)
@click.option(
    "--components", type=click.Choice(COMPONENTS), help="Which connected components of all that is labelled stay."
)
@click.option(
    "--window", metavar="SIZE", help="Voxels, EDGE or Z,Y,X, or auto: what computes least; dynamic models only."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--memory", metavar="SIZE", help="Most memory to use, such as 4G; too little for a scan is refused.")
@click.option("--every-window", is_flag=True, help="Ask the network about windows of nothing but air, too.")
@click.option("--cuda-graph", is_flag=True, help="On a GPU alone: start the network with one call per batch.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--format", "formats", multiple=True, metavar="NAME", help=f"Of {', '.join(FORMATS)}; several: A,B.")
@click.option("--series", metavar="UID", help="The series of a DICOM input, or UID:NUMBER; see inspect.")
@click.option("--report", is_flag=True, help="Also write SCAN_report.html: an interactive viewer in one file.")
def infer(
    scans: tuple[Path, ...], out: Path | None, model: str | None, reference: bool,
    overlap: float | None, blend: Blend | None, placement: Placement | None, components: Components | None,
    window: str | None, device: str, memory: str | None, every_window: bool, cuda_graph: bool, quiet: bool,
    formats: tuple[str, ...], series: str | None, report: bool,
) -> None:  # fmt: skip
    """Segment scans (.nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd), DICOM (folder, .dcm, .zip), or folders of scans."""
    from dropgen_rt.infer import infer_files
    from dropgen_rt.memory import parse_bytes
    from dropgen_rt.settings import Settings
    from dropgen_rt.window_size import parse_window

    limit = None if memory is None else parse_bytes(memory)
    settings = Settings(
        overlap=overlap, blend=blend, reference=reference, skip_air=not every_window, memory_bytes=limit,
        window=None if window is None else parse_window(window), cuda_graph=cuda_graph, placement=placement,
        components=components,
    )  # fmt: skip
    failures = infer_files(scans, out, model, settings, device, quiet, report, parse_formats(formats), series)
    if failures:
        raise SystemExit(failures[0].exit_code)


@main.command("pretrain-encoder")
@click.argument("label_maps", type=FILE)
@click.option("--out", type=FILE, required=True, help="Encoder file to write.")
@click.option("--tissues", type=FILE, help="A synthesis.toml: the label values of one tissue become one label.")
@click.option("--steps", type=int, default=1100, show_default=True)
@click.option("--width", type=int, default=8, show_default=True)
@click.option("--edge", type=int, default=48, show_default=True, help="Edge of a crop, voxels.")
@click.option("--batch", type=int, default=1, show_default=True, help="Pairs of views in a step.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--save-every", type=int, default=500, show_default=True, help="Steps between checkpoints.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--resume", is_flag=True, help="Go on from the state kept beside the encoder file.")
def pretrain_encoder(
    label_maps: Path, out: Path, tissues: Path | None, device: str, resume: bool, **options: int
) -> None:  # fmt: skip
    """Pretrain an encoder by contrast on a folder of 1 mm LABEL_MAPS and random shapes."""
    require_extra("train")
    from dropgen_rt.train.pretrain import PretrainConfig, pretrain

    pretrain(label_maps, out, PretrainConfig(**options), click.echo, device, resume, tissues)
    click.echo(f"wrote {out}")


@main.command()
@click.argument("prediction", type=FILE)
@click.argument("label", type=FILE)
@click.option("--labels", type=FILE, help="A dataset.json: its source values are merged into its labels in LABEL.")
@click.option(
    "--tolerance-mm", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Of the surface Dice."
)
@click.option("-o", "--out", type=FILE, help="Write NAME.json and NAME.csv beside each other; give NAME.json.")
def evaluate(prediction: Path, label: Path, labels: Path | None, tolerance_mm: float, out: Path | None) -> None:
    """Dice, HD95 and surface Dice per label of PREDICTION against LABEL: two label maps, or two folders of them."""
    from dropgen_rt.evaluate import evaluate_files

    for line in evaluate_files(prediction, label, labels, out, tolerance_mm):
        click.echo(line)


for command in (
    bench, cli_train.train, cli_train.encoders, cli_export.export, cli_engines.build_engine, cli_engines.verify,
    cli_engines.doctor, cli_models.models,
):  # fmt: skip
    main.add_command(command)

if __name__ == "__main__":
    sys.exit(main())
