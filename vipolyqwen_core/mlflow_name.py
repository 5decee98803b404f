"""Names of metrics as MLflow takes them."""

import re


def mlflow_name(name: str) -> str:
    """The name of a metric with characters that MLflow takes: `mrr_at_10`, `recall_at_1/instr/en_to_vi`."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_").replace(">", "_to_"))
