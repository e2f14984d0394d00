"""Configs in TorchEasyRec's format, one for each model that is imported, for the rows of easyrec_configs.py."""

from easyrec_configs import group as easyrec_group

PIPELINE = """\
train_input_path: "train.csv"
eval_input_path: "valid.csv"
model_dir: "runs/imported"
train_config {
  sparse_optimizer { adagrad_optimizer { lr: 0.01 } constant_learning_rate { } }
  dense_optimizer { adam_optimizer { lr: 0.001 weight_decay: 1e-5 } constant_learning_rate { } }
  num_steps: 20
  log_step_count_steps: 5
  use_tensorboard: false
}
eval_config { }
data_config {
  batch_size: 64
  dataset_type: CsvDataset
  fg_mode: FG_DAG
  input_fields { input_name: "clk" input_type: INT32 }
  input_fields { input_name: "buy" input_type: INT32 }
  input_fields { input_name: "user" input_type: STRING }
  input_fields { input_name: "item" input_type: STRING }
  input_fields { input_name: "brand" input_type: STRING }
  input_fields { input_name: "hour" input_type: INT32 }
  input_fields { input_name: "price" input_type: DOUBLE }
  input_fields { input_name: "tags" input_type: STRING }
  input_fields { input_name: "past__item" input_type: STRING }
  input_fields { input_name: "brands" input_type: STRING }
  input_fields { input_name: "count" input_type: INT32 }
  input_fields { input_name: "age" input_type: DOUBLE }
  label_fields: "clk"  label_fields: "buy"
  num_workers: 8
}
feature_configs { id_feature { feature_name: "user" expression: "user:user" hash_bucket_size: 1000 embedding_dim: 8 } }
feature_configs { id_feature { feature_name: "item" expression: "item:item" hash_bucket_size: 500 embedding_dim: 8
                               embedding_name: "item_emb" } }
feature_configs { id_feature { feature_name: "brand" expression: "item:brand" hash_bucket_size: 100 embedding_dim: 8 } }
feature_configs { id_feature { feature_name: "hour_of_day" expression: "context:hour" num_buckets: 24
                               embedding_dim: 8 } }
feature_configs { raw_feature { feature_name: "price" expression: "item:price" } }
feature_configs { id_feature { feature_name: "tags" expression: "item:tags" separator: "|" hash_bucket_size: 50
                               embedding_dim: 8 pooling: "mean" } }
feature_configs { sequence_feature { sequence_name: "past" sequence_length: 20 sequence_delim: "|"
  features { id_feature { feature_name: "item" expression: "item:item" hash_bucket_size: 500 embedding_dim: 8
                          embedding_name: "item_emb" } } } }
feature_configs { sequence_id_feature { feature_name: "brands" expression: "user:brands" sequence_length: 10
  sequence_delim: "|" hash_bucket_size: 100 embedding_dim: 8 } }
model_config {
  MODEL
}
export_config { }
"""


def config(model: str) -> str:
    return PIPELINE.replace("MODEL", model)


def group(name: str, *features: str, inner: str = "", kind: str = "DEEP") -> str:
    return easyrec_group(name, *features, inner=inner).replace("wide_deep: DEEP", f"group_type: {kind}")


def towers(second: str = "", mlp: str = "mlp { hidden_units: [16, 8] }") -> str:
    return f"""
    task_towers {{ tower_name: "ctr" label_name: "clk" {mlp} metrics {{ auc {{ thresholds: 1000 }} }}
                   losses {{ binary_cross_entropy {{}} }} num_class: 1 weight: 1.0 }}
    task_towers {{ tower_name: "cvr" label_name: "buy" {mlp} metrics {{ auc {{}} }}
                   losses {{ binary_cross_entropy {{}} }} {second} }}"""


FEATURES = ("user", "item", "brand", "hour_of_day", "price", "tags")
EMBEDDED = ("user", "item", "brand", "hour_of_day", "tags")
ALL = group("all", *FEATURES)
ONE = "metrics { auc {} } losses { binary_cross_entropy {} }"
DIN = """sequence_groups { group_name: "past" feature_names: ["item", "past__item"] }
    sequence_encoders { din_encoder { input: "past" attn_mlp { hidden_units: [16] activation: "Dice" } } }"""

MODELS = {
    "simple_multi_task": ALL + f"simple_multi_task {{ {towers()} }}",
    "mmoe": ALL + f"mmoe {{ expert_mlp {{ hidden_units: [32, 16] }} num_expert: 3 {towers()} }}",
    "ple": ALL + """ple { extraction_networks { network_name: "l1" expert_num_per_task: 2 share_num: 1
        task_expert_net { hidden_units: [16] } share_expert_net { hidden_units: [16] } }
        extraction_networks { network_name: "l2" expert_num_per_task: 1 share_num: 2
        task_expert_net { hidden_units: [8] } share_expert_net { hidden_units: [8] } }""" + towers() + "}",
    "dbmtl": ALL + f"""dbmtl {{ mask_net {{ n_mask_blocks: 2 mask_block {{ reduction_ratio: 2 hidden_dim: 16 }}
        top_mlp {{ hidden_units: 16 }} use_parallel: true }} bottom_mlp {{ hidden_units: [32] }}
        expert_mlp {{ hidden_units: 16 }} num_expert: 2
        {towers('relation_tower_names: ["ctr"] relation_mlp { hidden_units: [8] }')} }}""",
    "dbmtl_with_a_history": group("all", "user", "item", inner=DIN) + f"""dbmtl {{ bottom_mlp {{ hidden_units: [32] }}
        {towers('relation_tower_names: ["ctr"] relation_mlp { hidden_units: [8] }')} }}""",
    "pepnet": ALL + group("domain", "hour_of_day") + group("uia", "user", "item") + f"""pepnet {{ epnet_hidden_unit: 16
        ppnet_hidden_units: [32, 16] ppnet_activation: "nn.ReLU" ppnet_dropout_ratio: [0.1, 0.1] {towers()} }}""",
    "multi_tower": group("user", "user", "hour_of_day") + group("item", "item", "brand", "price") + """multi_tower {
        towers { input: "user" mlp { hidden_units: [16] } } towers { input: "item" mlp { hidden_units: [16] } }
        final { hidden_units: [8] } } """ + ONE,
    "multi_tower_din": group("deep", "user", "item", "price")
        + group("past", "item", "past__item", kind="SEQUENCE") + """multi_tower_din {
        towers { input: "deep" mlp { hidden_units: [16] use_bn: true } }
        din_towers { input: "past" attn_mlp { hidden_units: [16] } } final { hidden_units: [8] } } """ + ONE,
    "deepfm": group("wide", *EMBEDDED, kind="WIDE") + group("fm", *EMBEDDED) + group("deep", *FEATURES) + """deepfm {
        deep { hidden_units: [16] } final { hidden_units: [8] } wide_embedding_dim: 4 } """ + ONE,
    "wide_and_deep": group("wide", *EMBEDDED, kind="WIDE") + group("deep", *EMBEDDED) + """wide_and_deep {
        deep { hidden_units: [16] } } """ + ONE,
    "dcn_v1": group("features", *FEATURES) + """dcn_v1 { cross { cross_num: 2 } deep { hidden_units: [16] }
        final { hidden_units: [8] } } """ + ONE,
    "dcn_v2": group("features", *FEATURES) + """dcn_v2 { cross { cross_num: 2 low_rank: 8 } deep { hidden_units: [16] }
        final { hidden_units: [8] } } """ + ONE,
    "dlrm": group("dense", "price") + group("sparse", *EMBEDDED) + """dlrm { dense_mlp { hidden_units: [16, 8] }
        arch_with_sparse: false final { hidden_units: [8] } } """ + ONE,
    "mask_net": ALL + """mask_net { mask_net_module { n_mask_blocks: 2 mask_block { aggregation_dim: 32 hidden_dim: 16 }
        top_mlp { hidden_units: 16 } use_parallel: false } } """ + ONE,
}
