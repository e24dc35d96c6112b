"""`specbench doctor`: is the set-up sane, before anything is measured?"""

from __future__ import annotations

import typer

from specbench.cli.app import app
from specbench.cli.options import AsJson, ConfigFile, Grouped, Keys, Own, Quiet, with_settings
from specbench.cli.show import print_json, print_parts

BROKEN_EXIT = 1


@app.command("doctor", cls=Grouped)
@with_settings(
    "doctor",
    draft=Own(help="Draft model id or directory; repeatable."),
    limit=Own(default=4),
    max_new_tokens=Own(default=24),
    temperature=Own(help="Above 0 how drafts are drawn is checked too."),
)
def doctor(keys: Keys, config: ConfigFile = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Find a broken set-up before a sweep calls it a poor draft. Exits 1 if something is broken."""
    from specbench.config import load_config
    from specbench.shipped import shipped

    settings = load_config(config or shipped("configs/default.yaml"), keys)
    from specbench.verify.admit import run_doctor

    found = run_doctor(settings, (lambda _: None) if quiet else (lambda line: typer.echo(line, err=True)))
    if as_json:
        print_json(found)
    else:
        from specbench.report.tables import doctor_tables

        print_parts(doctor_tables(found))
    if found.broken:
        raise typer.Exit(BROKEN_EXIT)
