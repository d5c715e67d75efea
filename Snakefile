"""The order of the steps, nothing else: one rule, one `harness` verb. What is asked lives in the study's file."""

import shlex
import sys
import tempfile
from pathlib import Path

config.setdefault("study", "quickstart")
STUDY = config["study"]
DONE = f"results/studies/{STUDY}"
OPTIONS = [f"--runner-option={key}={value}" for key, value in config.get("runner_options", {}).items()]
RUN = shlex.join(["--runner", config.get("runner", "local"), *OPTIONS])
# Exit code 4, "some trials failed", is a result: the failures are records, and the report shows them.
PARTLY = "|| [ $? -eq 4 ]"
for folder in map(Path, ("results", "reports")):
    try:
        folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:  # snakemake itself would end in a traceback
        print(f"snakemake: {folder} must be a writable folder, but is not ({error.strerror}): fix permissions", file=sys.stderr)
        sys.exit(5)


# Every rule stays where snakemake runs: the drivers submit their trials as jobs themselves, the rest takes seconds.
localrules: all, base, search, confirm, database, backtest, report


rule all:
    input: f"reports/{STUDY}.html"


rule base:
    input: f"studies/{STUDY}.yaml"
    output: f"{DONE}/base.done"
    shell: "harness base {input} {RUN} {PARTLY}"


rule search:
    input: study=f"studies/{STUDY}.yaml", base=rules.base.output
    output: f"{DONE}/search.done"
    shell: "harness search {input.study} {RUN} {PARTLY}"


rule confirm:
    input: study=f"studies/{STUDY}.yaml", search=rules.search.output
    output: f"{DONE}/confirm.done"
    shell: "harness confirm {input.study} {RUN} {PARTLY}"


rule database:
    input: rules.confirm.output
    output: "results/harness.duckdb"
    shell: "harness database"


rule backtest:
    input: rules.database.output
    output: "results/backtest.json"
    shell: "harness backtest"


rule report:
    input: study=f"studies/{STUDY}.yaml", backtest=rules.backtest.output
    output: f"reports/{STUDY}.html"
    shell: "harness report {input.study}"
