"""Configs in FuxiCTR's format, an experiment for each model that is imported, and rows with a header line."""

from pathlib import Path

from easyrec_configs import rows

DATASET = """\
other_x1:
  data_format: csv
  feature_cols: [{name: a, dtype: str, type: categorical}]
  label_col: {name: b, dtype: float}
shop_x1:
  data_root: ./data/
  data_format: csv
  train_data: train.csv
  valid_data: valid.csv
  min_categr_count: 1
  feature_cols:
    - {name: [user, item, brand], active: True, dtype: str, type: categorical}
    - {name: hour, active: True, dtype: str, type: categorical, min_categr_count: 2}
    - {name: price, active: True, dtype: float, type: numeric, normalizer: StandardScaler}
    - {name: tags, active: False, dtype: str, type: sequence, splitter: "|"}
    - {name: seen, active: True, dtype: str, type: sequence, splitter: "|", max_len: 20, padding: pre,
       share_embedding: item, feature_encoder: "layers.MaskedSumPooling()"}
    - {name: brands, active: True, dtype: str, type: sequence, splitter: "|", feature_encoder: null}
  label_col: LABELS
"""
BASE = """\
Base:
  model_root: ./checkpoints/
  num_workers: 3
  verbose: 1
  early_stop_patience: 2
  pickle_feature_encoder: True
  save_best_only: True
  eval_steps: null
  debug_mode: False
  group_id: null
  use_features: null
  feature_specs: null
  feature_config: null
  seed: 7
"""
EXPERIMENT = """\
{name}:
  model: {model}
  dataset_id: shop_x1
  loss: {loss}
  metrics: [AUC, logloss]
  task: {task}
  optimizer: adam
  learning_rate: 1.e-3
  embedding_regularizer: 1.e-6
  net_regularizer: 0
  batch_size: 64
  embedding_dim: 8
  epochs: 1
  shuffle: True
  seed: 2024
  monitor: AUC
  monitor_mode: max
  {keys}
"""
ONE, TWO = "{name: clk, dtype: float}", "[{name: clk, dtype: float}, {name: buy, dtype: float}]"
DEEP = "hidden_units: [16, 8]\n  hidden_activations: relu\n  net_dropout: 0.1\n  batch_norm: True"
DNN = "dnn_hidden_units: [16, 8]\n  dnn_activations: relu\n  net_dropout: 0\n  batch_norm: False"
SEVERAL = "num_tasks: 2\n  hidden_activations: ReLU\n  tower_hidden_units: [8]\n  net_dropout: 0\n  batch_norm: False"

MODELS = {
    "LR": "", "FM": "", "DNN": DEEP, "DeepFM": DEEP, "WideDeep": DEEP, "NFM": DEEP,
    "AFM": "attention_dim: 8\n  attention_dropout: [0.1, 0]",
    "PNN": DEEP + "\n  product_type: inner",
    "AutoInt": DNN + "\n  attention_layers: 2\n  num_heads: 2\n  attention_dim: 16\n  use_residual: True",
    "DCN": DNN + "\n  num_cross_layers: 2",
    "DCNv2": """model_structure: parallel
  use_low_rank_mixture: True
  low_rank: 8
  num_experts: 2
  num_cross_layers: 2
  stacked_dnn_hidden_units: [16]
  parallel_dnn_hidden_units: [16, 8]
  dnn_activations: relu""",
    "DIN": DNN + """
  din_target_field: [item, brand]
  din_sequence_field: [seen, brands]
  attention_hidden_units: [16]
  attention_hidden_activations: Dice
  attention_output_activation: null
  din_use_softmax: False""",
    "PPNet": DEEP + "\n  gate_priors: [user, item]\n  gate_hidden_dim: 16",
    "APG": DEEP.replace("batch_norm: True", "batch_norm: False") + """
  condition_mode: group-wise
  condition_features: [hour]
  rank_k: 4
  overparam_p: 8
  hypernet_config: {hidden_units: [8], dropout_rates: 0}""",
    "ShareBottom": SEVERAL + "\n  bottom_hidden_units: [16]",
    "MMoE": SEVERAL + "\n  num_experts: 3\n  expert_hidden_units: [16]\n  gate_hidden_units: [8]",
    "PLE": SEVERAL + """
  num_layers: 2
  num_shared_experts: 1
  num_specific_experts: 2
  expert_hidden_units: [16]
  gate_hidden_units: []""",
    "AITM": SEVERAL + "\n  bottom_hidden_units: [16]",
}


def experiment(name: str, model: str, keys: str) -> str:
    several = "num_tasks" in keys
    kind, loss = "binary_classification", "binary_crossentropy"
    return EXPERIMENT.format(name=name, model=model, keys=keys, loss=f"[{loss}, {loss}]" if several else loss,
                             task=f"[{kind}, {kind}]" if several else kind)


def write_configs(folder: Path, *experiments: str, labels: str = ONE) -> None:
    (folder / "dataset_config.yaml").write_text(DATASET.replace("LABELS", labels))
    (folder / "model_config.yaml").write_text(BASE + "".join(experiments))


def write_rows(folder: Path) -> None:
    head = "clk,buy,user,item,brand,hour,price,tags,seen,brands,count,age\n"
    (folder / "train.csv").write_text(head + rows(300))
    (folder / "valid.csv").write_text(head + rows(150, seed=1))
