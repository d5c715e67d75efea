"""The order of the steps, nothing else: one rule, one `harness` verb. What is asked lives in the study's file."""

config.setdefault("study", "quickstart")
STUDY = config["study"]
DONE = f"results/studies/{STUDY}"
RUN = "--runner {} {}".format(
    config.get("runner", "local"),
    " ".join(f"--runner-option {key}={value}" for key, value in config.get("runner_options", {}).items()),
)


# The drivers submit jobs of their own and must outlive none of them, so they stay where snakemake runs.
localrules: all, base, search, confirm


rule all:
    input: f"reports/{STUDY}.html"


rule base:
    input: f"studies/{STUDY}.yaml"
    output: f"{DONE}/base.done"
    shell: "harness base {input} {RUN}"


rule search:
    input: study=f"studies/{STUDY}.yaml", base=rules.base.output
    output: f"{DONE}/search.done"
    shell: "harness search {input.study} {RUN}"


rule confirm:
    input: study=f"studies/{STUDY}.yaml", search=rules.search.output
    output: f"{DONE}/confirm.done"
    shell: "harness confirm {input.study} {RUN}"


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
