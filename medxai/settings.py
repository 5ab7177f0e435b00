"""Settings of a run: what configs/*.yaml may say. The JSON Schema in docs/settings.json comes from here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, Field, PositiveInt, ValidationError, field_validator, model_validator

from medxai.errors import SettingsError
from medxai.settings_network import AETitle, ClientTls, Listen, Retrieve
from medxai.strict import Strict

Model = TypeVar("Model", bound=BaseModel)


Role = Literal[
    "parametric_map", "segmentation", "fractional_segmentation", "secondary_capture", "structured_report",
    "volumetric_report", "presentation_state", "encapsulated_pdf", "key_objects", "nifti", "picture", "movie",
    "annotations", "slide_tiles", "slide_overlay", "page",
]  # fmt: skip
ROLES: tuple[Role, ...] = get_args(Role)
#: What is written when nothing else is asked for: each shows in common viewers or is for people and research.
USUAL_ROLES: tuple[Role, ...] = (
    "parametric_map", "segmentation", "secondary_capture", "structured_report", "nifti", "picture", "movie",
    "annotations", "slide_tiles", "page",
)  # fmt: skip

#: The shipped output sets: one YAML file of `ExportOptions` each, named after where its objects go.
SETS = Path(__file__).resolve().parent.parent / "configs" / "sets"

Threshold = Annotated[float, Field(gt=0.0, lt=1.0)]


class ExportOptions(Strict):
    """Settings of the export stage; part of the configuration hash, since they change outputs.

    Attributes:
        output_set: name of a shipped output set (configs/sets), or path of a YAML file like those; what it says
            holds unless a field is given beside it.
        formats: roles to write, in any order; an exporter that does not apply to a study is skipped with a
            reason.
        explanations: which maps become objects: the primary one or all.
        bands: thresholds of the normalised map (0..1, exclusive), ascending, one segment each.
        labelmap: write the bands as a LABELMAP segmentation (exclusive bands, RLE) instead of BINARY.
        omit_empty_frames: leave frames without any band out of a segmentation.
        content_qualification: PS3.3 C.8.13.2 term; RESEARCH until the product is cleared.
        series_number_base: first SeriesNumber of written series; far above those of scanners.
        overlay_opacity: opacity of the strongest evidence in pictures, 0..1; weaker evidence is
            proportionally more transparent.
        picture_slices: slices shown in the mosaic.
        page_pixels: longest side in pixels of a slice in the HTML page.
        movie: format of the movie of a cine; GIF is written as well where PyAV is not installed.
        send_withheld: write maps whose trust gate says ``withheld`` as objects all the same, labelled as such.
        tracking: what a tracking identifier means: evidence in this ``study``, or the same finding in all studies of
            the ``patient``, so that a prior and the current study share it (`medxai.export.tracking`).
    """

    output_set: str | None = None
    formats: tuple[Role, ...] = USUAL_ROLES
    explanations: Literal["primary", "all"] = "all"
    bands: tuple[Threshold, ...] = Field(default=(0.25, 0.5, 0.75), min_length=1, max_length=9)
    labelmap: bool = False
    omit_empty_frames: bool = True
    content_qualification: Literal["RESEARCH", "SERVICE", "PRODUCT"] = "RESEARCH"
    series_number_base: int = Field(default=9100, ge=1, le=2_000_000_000)
    overlay_opacity: float = Field(default=0.8, gt=0.0, le=1.0)
    picture_slices: int = Field(default=12, ge=1, le=48)
    page_pixels: int = Field(default=384, ge=128, le=1024)
    movie: Literal["mp4", "gif"] = "mp4"
    send_withheld: bool = False
    tracking: Literal["study", "patient"] = "study"

    @model_validator(mode="before")
    @classmethod
    def _of_set(cls, data: Any) -> Any:
        name = data.get("output_set") if isinstance(data, dict) else None
        return data if not name else read_set(str(name)) | data

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if "volumetric_report" in self.formats and ("segmentation" not in self.formats or self.labelmap):
            raise ValueError(
                "volumetric_report refers to segments of a BINARY segmentation: formats needs both, without labelmap"
            )
        return self

    @field_validator("bands")
    @classmethod
    def _ascending(cls, bands: tuple[float, ...]) -> tuple[float, ...]:
        if list(bands) != sorted(set(bands)):
            raise ValueError("bands must be different thresholds in ascending order, for example [0.25, 0.5, 0.75]")
        return bands


def read_set(name: str) -> dict[str, Any]:
    """Return the fields of `ExportOptions` that an output set gives.

    Args:
        name: of a shipped set, or path of a YAML file.

    Raises:
        ValueError: there is no such set, or it is no mapping; pydantic names the field it stood in.
    """
    import yaml

    path = Path(name) if name.endswith((".yaml", ".yml")) else SETS / f"{name}.yaml"
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        known = ", ".join(sorted(p.stem for p in SETS.glob("*.yaml"))) or "none"
        msg = f"there is no output set {name!r} that can be read as YAML; shipped sets: {known}"
        raise ValueError(msg) from None
    if not isinstance(data, dict) or "output_set" in data:
        msg = f"output set {name!r} must be a mapping of export settings and name no other set"
        raise ValueError(msg)
    return data


class Destination(Strict):
    """A node of the network: where objects go, or where studies come from.

    Attributes:
        name: what messages call it.
        kind: ``dimse`` or ``dicomweb``.
        host: of a DIMSE node.
        port: of a DIMSE node.
        aet: its application entity title.
        calling_aet: ours.
        url: root of a DICOMweb service, up to and including ``/dicom-web``.
        connect_seconds: limit for connecting and association negotiation.
        response_seconds: limit for each answer.
        tls: certificates; for ``dimse`` its presence means TLS, for ``dicomweb`` the url says it.
        token_env: environment variable that holds the bearer token of a DICOMweb service; the token itself stands in no
            file and in no log.
        query_aet: application entity title that answers C-FIND, C-MOVE and C-GET, when it is not `aet`.
        query_port: its port, when it is not `port`.
        retrieve: how studies are fetched by DIMSE: C-MOVE to our listener, or C-GET over the same association.
        output_set: which of the objects go there: those whose roles the set of this name (or file) lists; all when
            it is None. How they look is decided by `ExportOptions` alone.
    """

    name: str = Field(min_length=1)
    kind: Literal["dimse", "dicomweb"]
    host: str = ""
    port: int = Field(default=104, ge=1, le=65535)
    aet: str = Field(default="", max_length=16)
    calling_aet: AETitle = "MEDXAI"
    url: str = ""
    connect_seconds: float = Field(default=10.0, gt=0)
    response_seconds: float = Field(default=60.0, gt=0)
    tls: ClientTls | None = None
    token_env: str = ""
    query_aet: str = Field(default="", max_length=16)
    query_port: int | None = Field(default=None, ge=1, le=65535)
    retrieve: Retrieve = "move"
    output_set: str | None = None

    @field_validator("output_set")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None:
            ExportOptions(output_set=name)
        return name

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "dimse" and not (self.host and self.aet):
            raise ValueError("a dimse destination needs host, port and aet")
        if self.kind == "dicomweb" and not self.url.startswith(("http://", "https://")):
            raise ValueError("a dicomweb destination needs a url that starts with http:// or https://")
        if self.token_env and not (self.kind == "dicomweb" and self.url.startswith("https://")):
            raise ValueError("token_env is for dicomweb over https:// only, since others would read the token")
        return self


class SlideOptions(Strict):
    """How whole slides are decided tile by tile; without effect on anything else.

    Attributes:
        pooling: logits of tiles -> decision of the slide: by the rule of the ``bundle``, or by its ``attention`` over
            tiles, where it has weights for that.
        stain: ``macenko`` or ``whitening`` bring the slide's colours to those of the bundle's training tiles before the
            network; Macenko without such takes the published reference.
        icc: colours go through the slide's ICC profile first; a slide without one is refused then.
        flagged: whether tiles that are blurred, folded, under ink or unlike those of training decide with the others or
            are left out.
        judged: of how many of the most evident tiles the trust is measured and written; those that decide about the map
            are always among them.
    """

    pooling: Literal["bundle", "attention"] = "bundle"
    stain: Literal["none", "macenko", "whitening"] = "none"
    icc: bool = False
    flagged: Literal["keep", "leave_out"] = "keep"
    judged: PositiveInt = 5


class RunSettings(Strict):
    """One batch: inputs, model, methods, outputs.

    Attributes:
        inputs: files, folders or zip archives, searched recursively; relative to the working directory. Only settings
            with `listen` may leave them out.
        output: folder of the results; the worklist lies in ``<output>/.medxai`` unless `database` is set.
        bundle: name of a shipped bundle or path of a bundle folder.
        allow: JSON file with the hashes of further bundles that may be loaded.
        methods: explanation methods; the first is the primary one.
        method_options: options of methods, for example ``{scorecam: {channels: 64}}``.
        layer: target layer, or None for the bundle's own.
        masking: what perturbation methods put where they remove.
        seed: of every random draw of the methods.
        explain_class: class name to explain, or None for the decided class.
        modality: DICOM modality to assume for NIfTI files, which store none.
        force: analyse although the body part differs from what the bundle was trained on.
        geometry: what happens to series that are no regular grid (gantry tilt, missing or unevenly spaced slices):
            ``refuse`` puts them in quarantine; ``straighten`` gives the model a straight grid through the slices, and
            maps go back to the slices as they were taken.
        largest_gap_mm: distance of slices above which they are refused all the same: nobody knows what lies between.
        stability: repeat the strongest window with slight noise and flag maps that change.
        trust: ``fast`` judges every map in at most ten forwards of its most decisive window; ``no`` does not.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``float32``, or ``bfloat16`` autocast on devices that profit.
        prepared: run the compiled form of the bundle (``medxai bundle prepare``) in this precision where it is there
            and allowed, and the network itself where it is not.
        slide: how whole slides are decided tile by tile.
        batch_size: windows per forward pass.
        workers: studies worked on at the same time.
        database: SQLAlchemy URL of the worklist.
        export: output formats and their options.
        destinations: where DICOM results are delivered.
        sources: nodes that studies are pulled from (`medxai pull`), besides the destinations.
        listen: the listener (`medxai listen`).
        delivery_retries: how often the batch tries a destination again that does not answer; the listener never gives
            up.
        delivery_retry_seconds: pause before the first of these, twice as long before each next one.
        delivery_retry_cap_seconds: longest pause of the listener.
        fail_above: share of quarantined studies above which the whole batch counts as failed.
    """

    inputs: tuple[Path, ...] = ()
    output: Path
    bundle: str
    allow: Path | None = None
    methods: tuple[str, ...] = Field(default=("gradcam",), min_length=1)
    method_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    layer: str | None = None
    masking: str = "zero"
    seed: int = Field(default=0, ge=0)
    explain_class: str | None = None
    modality: str | None = None
    force: bool = False
    geometry: Literal["refuse", "straighten"] = "refuse"
    largest_gap_mm: Annotated[float, Field(gt=0)] = 10.0
    stability: bool = True
    trust: Literal["fast", "no"] = "fast"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    prepared: Literal["no", "float32", "bfloat16"] = "no"
    slide: SlideOptions = SlideOptions()
    batch_size: PositiveInt = 4
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    database: str | None = None
    export: ExportOptions = ExportOptions()
    destinations: tuple[Destination, ...] = ()
    sources: tuple[Destination, ...] = ()
    listen: Listen | None = None
    delivery_retries: Annotated[int, Field(ge=0, le=10)] = 3
    delivery_retry_seconds: Annotated[float, Field(gt=0)] = 5.0
    delivery_retry_cap_seconds: Annotated[float, Field(gt=0)] = 300.0
    fail_above: Annotated[float, Field(ge=0, le=1)] = 0.5

    @model_validator(mode="after")
    def _names(self) -> Self:
        if self.listen is None and "inputs" not in self.model_fields_set:
            raise ValueError("inputs names the studies of a batch; only the listener needs none")
        for kind in ("destinations", "sources"):
            names = [node.name for node in getattr(self, kind)]
            if len(names) != len(set(names)):
                raise ValueError(f"two {kind} have the same name, by which their deliveries are told apart")
        items = self.listen.work_items if self.listen else None
        if items is not None:
            self.node(items.source)
        return self

    def node(self, name: str) -> Destination:
        """Return the source or destination of this name.

        Raises:
            ValueError: there is none.
        """
        known = {node.name: node for node in (*self.destinations, *self.sources)}
        if name not in known:
            msg = f"there is no source or destination {name!r}; there are {', '.join(known) or 'none'}"
            raise ValueError(msg)
        return known[name]


def load_settings(path: Path, overrides: dict[str, Any] | None = None) -> RunSettings:
    """Read a YAML file of `RunSettings`.

    Raises:
        SettingsError: unreadable file, or a wrong value; the message names the field.
    """
    return make_settings(read_yaml(path) | (overrides or {}), where=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping.

    Raises:
        SettingsError: unreadable file, or something else.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        msg = f"cannot be read as YAML ({str(error).splitlines()[0]})"
        raise SettingsError(msg, study=str(path)) from error
    if not isinstance(data, dict):
        msg = "is not a mapping of settings"
        raise SettingsError(msg, study=str(path))
    return data


def make_settings(values: dict[str, Any], where: str | None = None) -> RunSettings:
    """Validate settings given as a dictionary.

    Raises:
        SettingsError: one line that names every wrong field.
    """
    return checked(RunSettings, values, where)


def checked(kind: type[Model], values: dict[str, Any], where: str | None = None) -> Model:
    """Validate a dictionary as settings of some kind.

    Raises:
        SettingsError: one line that names every wrong field.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            if fault["loc"]
            else fault["msg"].removeprefix("Value error, ")
            for fault in error.errors()
        )
        raise SettingsError(faults, study=where) from error


def parse_destination(text: str, calling_aet: str = "MEDXAI") -> Destination:
    """Read ``AET@host:port`` or the http(s) root of a DICOMweb service.

    Raises:
        SettingsError: neither form.
    """
    if text.startswith(("http://", "https://")):
        return Destination(name=text, kind="dicomweb", url=text.rstrip("/"))
    aet, at, address = text.partition("@")
    host, colon, port = address.rpartition(":")
    if not (aet and at and host and colon and port.isdigit()):
        msg = f"{text!r} is neither AET@host:port nor the http(s) root of a DICOMweb service"
        raise SettingsError(msg)
    try:
        return Destination(name=text, kind="dimse", host=host, port=int(port), aet=aet, calling_aet=calling_aet)
    except ValidationError as error:
        raise SettingsError(str(error.errors()[0]["msg"]), study=text) from error
