"""Run the benchmarks: all of them, or the entry that is named."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench import (
    brain,
    breast,
    chest,
    coarse,
    dceac,
    engine,
    fusion,
    gate,
    growth,
    ingest,
    lung,
    lung_live,
    nuclei,
    objects,
    peers,
    prepared,
    quantus,
    search,
    slides,
    studies,
    synergistic,
    transport,
    trust,
)
from tests.bench.entry import Entry, load, save

DOCS = Path("docs")
SUITES: dict[tuple[str, ...], Callable[[], list[Entry]]] = {
    tuple(f"{name}_3d_over_floor" for name in ("gradcam", "layercam", "gradcampp", "eigencam")): engine.maps_3d,
    tuple(f"{name}_2d_over_floor" for name in ("gradcam", "layercam", "gradcampp", "eigencam")): engine.maps_2d,
    ("eight_methods_three_classes_over_floor",): engine.eight_methods,
    ("gradcam_memory_over_inference", "sliding_window_memory_volumes"): engine.gradcam_memory,
    ("sliding_window_over_floor",): engine.sliding_window,
    ("gradcam_3d_prepared_over_floor", "gradcam_3d_prepared_map_error"): prepared.gradcam_prepared,
    (
        "gradcam_3d_bf16_over_floor",
        "bf16_map_correlation_breast_us",
        "bf16_map_correlation_chest_ct",
        "bf16_map_correlation_phantom_ct",
    ): prepared.gradcam_bf16,
    (
        "scorecam_2d_prepared_over_eager",
        "scorecam_3d_prepared_over_eager",
        "occlusion_2d_prepared_over_eager",
        "occlusion_3d_prepared_over_eager",
    ): prepared.whole_prepared,
    tuple(f"{peer.replace('-', '_')}_gradcam_3d_over_ours" for peer in peers.PEERS): peers.gradcam,
    peers.names("scorecam"): peers.scorecam,
    peers.names("occlusion"): peers.occlusion,
    coarse.NAMES: coarse.coarse_to_fine,
    (
        "growth_volume_exponent",
        "growth_memory_exponent",
        "growth_channels_exponent",
        "growth_classes_exponent",
    ): growth.growth,
    lung_live.NAMES: lung_live.live,
    ("sam_over_forwards",): synergistic.over_forwards,
    ("sam_peak_memory_over_chunk",): synergistic.memory,
    ("fusion_step_seconds",): synergistic.step,
    ("insertion_deletion_3d_over_forwards",): trust.insertion_deletion,
    quantus.names(): quantus.over_quantus,
    ("gate_fast_forwards",): gate.forwards,
    ("gate_broken_caught_share", "gate_false_alarm_share"): gate.shares,
    ("fuzz_crashes",): ingest.damaged,
    ingest.READING: ingest.reading,
    ("corpus_files_without_silent_error_share",): ingest.collected,
    (
        "seg_binary_over_floor",
        "seg_binary_peak_memory_over_inputs",
        "seg_fractional_over_floor",
        "seg_fractional_peak_memory_over_inputs",
    ): objects.segmentations,
    ("sr_cpu_seconds", "sr_peak_memory_over_inputs"): objects.report,
    ("pm_peak_memory_over_inputs",): objects.map_memory,
    ("cli_import_seconds",): engine.cli_import,
    ("study_28x512_seconds",): studies.small_study,
    ("study_120x512_seconds", "study_120x512_peak_gib"): studies.large_study,
    ("receive_studies_per_minute", "receive_objects_lost"): transport.receive,
    ("scan_to_pacs_seconds",): transport.scan_to_pacs,
    ("breast_us_balanced_accuracy",): breast.balanced,
    ("breast_us_mass_lift",): breast.localisation,
    ("chest_ct_lopo_auroc",): chest.leave_one_out,
    search.STEP: search.steps,
    ("search_memory_over_path",): search.memory_of_a_step,
    search.LATENCY: search.latency,
    search.MEMORY: search.peaks,
    ("searched_minus_random_auroc",): search.worth,
    ("synthetic_ct_mass_lift",): search.lift,
    lung.SCORES: lung.cross_validation,
    lung.CORRELATION: lung.correlation,
    ("features_200_volumes_seconds",): brain.features,
    ("fusion_simulated_auc",): fusion.simulated,
    ("sam_planted_hits",): fusion.hits,
    ("mice_genotype_accuracy",): fusion.genotypes,
    ("dceac_texture_accuracy",): dceac.accuracy,
    ("nuclei_aji_gain",): nuclei.gain,
    ("tile_explain_over_forward",): slides.explain_over_forward,
    slides.MEMORY: slides.peak_memory,
    ("slide_objects_seconds",): slides.objects_seconds,
    slides.SCORES: slides.scores,
}


def main() -> int:
    """Measure, merge with what was measured before, print and write."""
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    known = [name for names in SUITES for name in names]
    if only and only not in known:
        print(f"unknown entry {only!r}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    entries = load(DOCS / "benchmarks.json")
    for names, suite in SUITES.items():
        if only and only not in names:
            continue
        print(f"measuring {', '.join(names)} ...", flush=True)
        found = suite()
        if not found:
            print("  not measured: it needs MEDXAI_DATA or the results of training", flush=True)
        for entry in found:
            entries[entry.name] = entry
            print(
                f"  {entry.name}: {entry.value:.4g} {entry.unit} ({entry.low:.4g} - {entry.high:.4g}), {entry.met}",
                flush=True,
            )
    ordered = {name: entries[name] for name in known if name in entries}
    import torch

    notes = [
        f"Machine of the last run: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__.split('+')[0]}, CPU only.",
        "",
        "",
        "Time and memory of one Grad-CAM against the size of the volume, the channels of the target layer and the",
        "number of classes; lines are fits on logarithmic axes.",
        "",
        "![growth](images/growth.png)",
        "",
        "Localisation on breast ultrasound with its controls: [breast_us_localisation.md](breast_us_localisation.md).",
        "Lung ultrasound by patient: [lung_us.md](lung_us.md).",
        "What the trust gate catches: [evidence/trust_gate.md](evidence/trust_gate.md).",
    ]
    save(ordered, DOCS, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
