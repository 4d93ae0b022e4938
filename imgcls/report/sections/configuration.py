"""Machine, versions and all options."""

from __future__ import annotations

from imgcls.report.blocks import Blocks, Preformatted, Table
from imgcls.report.run_data import RunData
from imgcls.report.sections.section import Section


def _make(run: RunData) -> Blocks:
    environment, file = run.json("environment.json"), run.folder / "overrides.yaml"
    gpus = run.json("debug/profile/facts.json").get("gpus", [])
    facts = {
        "machine": f"{environment.get('machine', '')}, {environment.get('cpus', '?')} CPUs",
        **({"GPUs": ", ".join(gpus)} if gpus else {}),
        "python": environment.get("python", ""),
        **environment.get("versions", {}),
        "git": " ".join(f"{name}: {value}" for name, value in environment.get("git", {}).items()) or "no repository",
    }
    config = (run.folder / "config.yaml").read_text(encoding="utf-8")
    seed = [line.partition(":")[2].strip() for line in config.splitlines() if line.startswith("seed:")]
    rows = [["seed", *seed[:1]]] if seed else []
    rows += [[name, str(value)] for name, value in facts.items()] if environment else []
    overrides = file.read_text(encoding="utf-8").strip() if file.is_file() else "[]"
    return [
        Table(["what", "value"], rows),
        *([Preformatted("Overrides", overrides)] if overrides != "[]" else []),
        Preformatted("All options", config),
    ]


SECTION = Section("Configuration", _make)
