"""One of the training processes of a job on several hosts; `container.py` starts it through torchrun."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from imgcls.launch.sagemaker.container import report_failure


def main() -> int:
    """Train as one of the processes; report a failure."""
    work = json.loads(Path(sys.argv[1]).read_text())
    from omegaconf import OmegaConf

    from imgcls.errors import UserError
    from imgcls.runs.provenance import write_configuration
    from imgcls.system.interrupts import Interrupted
    from imgcls.training.fit import fit

    cfg: Any = OmegaConf.create(work["config"])
    if os.environ["RANK"] != "0" and os.environ["LOCAL_RANK"] == "0":
        write_configuration(Path(work["folder"]), work["config"])  # every host has its own run folder
    try:
        fit(cfg, work["overrides"])
    except UserError as error:
        report_failure(str(error))
        return error.exit_code
    except Interrupted:
        return 0  # torchrun kills the others 30 s after one fails, and they may still be writing
    except Exception as error:
        import traceback

        traceback.print_exc()
        report_failure(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the clean-up of a process group with a dead member would hang
