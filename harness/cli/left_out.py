"""Techniques of the literature that the catalogue does not have, each with the reason: `harness list left_out`."""

LEFT_OUT: dict[str, tuple[str, str]] = {
    "ppo": ("TRL has no PPO trainer any more; rloo and grpo take its place", "Schulman et al. 2017, arXiv 1707.06347"),
    "bco_trainer": (
        "TRL has no BCO trainer any more; dpo has its loss as bco_pair",
        "Jung et al. 2024, arXiv 2404.04656",
    ),
    "xpo": ("TRL has no trainer for it any more", "Xie et al. 2024, arXiv 2405.21046"),
    "nash_md": ("TRL has no trainer for it any more", "Munos et al. 2023, arXiv 2312.00886"),
    "process_reward_model": (
        "TRL has no trainer for it any more, and tasks have no step labels",
        "Uesato et al. 2022, arXiv 2211.14275",
    ),
    "svf": (
        "its second half chooses experts by reinforcement at inference; pissa and kasa train singular values",
        "Sun et al. 2025, arXiv 2501.06252",
    ),
    "apiq": ("needs a two-bit quantiser that only research code has", "Liao et al. 2024, arXiv 2402.05147"),
    "modulora": ("its library is no longer kept; qlora covers four bits", "Yin et al. 2023, arXiv 2309.16119"),
    "qst": (
        "a side network on a quantised base, of which no kept implementation exists",
        "Zhang et al. 2024, arXiv 2401.07159",
    ),
    "cluscomp": (
        "compression by clustering, of which no kept implementation exists",
        "Liao et al. 2025",
    ),
    "q_galore": (
        "its int8 projection needs CUDA kernels of a package that is no longer kept; galore is here",
        "Zhang et al. 2024, arXiv 2407.08296",
    ),
    "lomo": (
        "fuses the update into the backward pass, where clipping and accumulation are impossible",
        "Lv et al. 2023, arXiv 2306.09782",
    ),
    "badam": (
        "block by block as layer_freezing and lisa are, with no kept implementation",
        "Luo et al. 2024, arXiv 2404.02827",
    ),
    "progressive_networks": (
        "grows a column per task, so that the tuned model is no model of its architecture",
        "Rusu et al. 2016, arXiv 1606.04671",
    ),
    "alora": (
        "acts from an invocation text on, which tasks here do not have",
        "Greenewald et al. 2025, arXiv 2504.12397",
    ),
    "layer_replication": ("PEFT merges it wrong (logits off by .23)", "Kim et al. 2023, arXiv 2312.15166"),
    "lamb_8bit": ("behaves as AdamW in bitsandbytes", "You et al. 2019, arXiv 1904.00962"),
    "lars_8bit": ("behaves as SGD in bitsandbytes", "You et al. 2017, arXiv 1708.03888"),
    "shadow": (
        "PEFT computes its auxiliary loss from labels inside the model, and its last block never trained here",
        "",
    ),
    "arrow": ("routes among adapters that were trained before", "Ostapenko et al. 2024, arXiv 2405.11157"),
    "lora_bias": ("cannot be merged into a base without biases", ""),
    "gspo": (
        "answers serve one step here, so that its clipping by sequences does nothing; grpo has its gradient",
        "Zheng et al. 2025, arXiv 2507.18071",
    ),
    "online_dpo": ("needs a judge in the loop; rloo and grpo learn from rewards", "Guo et al. 2024, arXiv 2402.04792"),
    "on_policy_distillation": (
        "the teacher would have to score sampled answers at every step; distillation is on the task's rows",
        "Agarwal et al. 2023, arXiv 2306.13649",
    ),
    "comparative_prefix_tuning": (
        "its pairs of prefixes are for source code only",
        "Jiang et al. 2025, arXiv 2503.09020",
    ),
    "solution_evaluator": (
        "a filter cannot score solutions with a trained judge; cluster_vote ranks them by agreement",
        "Liu et al. 2023, arXiv 2310.10047",
    ),
    "explanation_follow_ups": (
        "related questions and explanations are written by a large model; explanation_consistency rewords prompts",
        "Chen et al. 2024, arXiv 2401.13986",
    ),
    "vision_methods": (
        "Vision-Flan, Point-PEFT and their kin tune models that see; this harness tunes language models",
        "",
    ),
    "llm_judge": ("scores of a judge behind an API cannot be repeated", "Zheng et al. 2023, arXiv 2306.05685"),
    "comet_moverscore": ("need other models to be downloaded for scoring", "Rei et al. 2020, arXiv 2009.09025"),
}
"""Name to the reason and the source."""
