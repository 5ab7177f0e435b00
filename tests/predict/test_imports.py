from __future__ import annotations

import subprocess
import sys


def test_bundles_are_found_and_checked_without_importing_torch() -> None:
    code = (
        "import sys; from medxai.predict import bundle, bundle_spec, check, infer, windows, write;"
        "assert bundle.load_bundle('phantom_ct').spec.labels;"
        "heavy = {'torch', 'monai', 'sklearn', 'SimpleITK'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
