"""Configs in EasyRec's format, one for each model class that is imported, and rows of the columns that they declare."""

import random
from pathlib import Path

PIPELINE = """\
train_input_path: "train.csv"
eval_input_path: "valid.csv"
model_dir: "runs/imported"
train_config {
  log_step_count_steps: 5
  optimizer_config: {
    adam_optimizer: {
      learning_rate: {
        exponential_decay_learning_rate {
          initial_learning_rate: 0.001  decay_steps: 1000  decay_factor: 0.5  min_learning_rate: 0.00001
        }
      }
    }
    use_moving_average: false
  }
  num_steps: 20
  save_checkpoints_steps: 10
  sync_replicas: true
}
eval_config { metrics_set: { auc {} } }
data_config {
  input_fields { input_name: "clk" input_type: INT32 }
  input_fields { input_name: 'buy' input_type: INT32 }
  input_fields { input_name: "user" input_type: STRING }
  input_fields { input_name: "item" input_type: STRING }
  input_fields { input_name: "brand" input_type: STRING }
  input_fields { input_name: "hour" input_type: INT32 default_val: "3" }
  input_fields { input_name: "price" input_type: DOUBLE }
  input_fields { input_name: "tags" input_type: STRING }
  input_fields { input_name: "seen" input_type: STRING }
  input_fields { input_name: "brands" input_type: STRING }
  input_fields { input_name: "count" input_type: INT32 }
  input_fields { input_name: "age" input_type: DOUBLE }
  label_fields: "clk"  label_fields: "buy"
  batch_size: 64
  num_epochs: 10000
  prefetch_size: 32
  input_type: CSVInput
}
feature_config: {
  features: { input_names: "user" feature_type: IdFeature embedding_dim: 8 hash_bucket_size: 1000 }
  features: { input_names: "item" feature_type: IdFeature embedding_dim: 8 hash_bucket_size: 500 }
  features: { input_names: "brand" feature_type: IdFeature embedding_dim: 8 hash_bucket_size: 100 }
  features: { input_names: "hour" feature_type: IdFeature embedding_dim: 8 num_buckets: 24 }
  features: { input_names: "price" feature_type: RawFeature boundaries: [1, 5, 20] embedding_dim: 8 }
  features: { input_names: "count" feature_type: RawFeature }
  features: { input_names: "age" feature_type: RawFeature min_val: 0 max_val: 100 }
  features: { input_names: "tags" feature_type: TagFeature separator: "|" hash_bucket_size: 50 embedding_dim: 8 }
  features: { input_names: "seen" feature_type: SequenceFeature separator: "|" hash_bucket_size: 500
              embedding_dim: 8 max_seq_len: 20 }
  features: { input_names: "brands" feature_type: SequenceFeature separator: "|" hash_bucket_size: 100
              embedding_dim: 8 }
}
model_config {
  MODEL
}
export_config { multi_placeholder: false }
"""


def group(name: str, *features: str, inner: str = "") -> str:
    return (f'feature_groups {{ group_name: "{name}" feature_names: {list(features)} wide_deep: DEEP {inner} }}\n'
            ).replace("'", '"')


def towers(second: str = "", first: str = "", dnn: str = "dnn { hidden_units: [16, 8] }") -> str:
    return f"""
    task_towers {{ tower_name: "ctr" label_name: "clk" {dnn} num_class: 1 weight: 1.0 loss_type: CLASSIFICATION
                   metrics_set {{ auc {{}} }} {first} }}
    task_towers {{ tower_name: "cvr" {dnn} num_class: 2 weight: 0.5 {second} }}"""


FEATURES = ("user", "item", "brand", "hour", "price", "tags")
ALL = group("all", *FEATURES)
WIDE_DEEP = group("wide", *FEATURES) + group("deep", *FEATURES)
USER_ITEM = group("user", "user", "hour") + group("item", "item", "brand")
CALIBRATED = 'losses { loss_type: CLASSIFICATION } losses { loss_type: ORDER_CALIBRATE_LOSS weight: 0.6 }'
BOTTOM = """blocks { name: "all" inputs { feature_group_name: "all" }
                     keras_layer { class_name: 'MLP' mlp { hidden_units: [32, 16] } } }"""


def block(name: str, inputs: str, layer: str, more: str = "") -> str:
    return f'blocks {{ name: "{name}" {inputs} {more} keras_layer {{ {layer} }} }}\n'


MODELS = {
    "mmoe": ALL + f"""model_class: "MMoE" embedding_regularization: 5e-6
        mmoe {{ expert_dnn {{ hidden_units: [32, 16] }} num_expert: 3 {towers()} l2_regularization: 1e-6 }}""",
    "mmoe_of_unlike_towers": ALL + f"""model_class: "MMoE"
        mmoe {{ expert_dnn {{ hidden_units: 16 dropout_ratio: 0.1 }} num_expert: 2
                {towers('dnn { hidden_units: 4 }', 'dnn { hidden_units: 8 }', '')} }}""",
    "ple": ALL + """model_class: "PLE" ple {
        extraction_networks { network_name: "l1" expert_num_per_task: 2 share_num: 1
            task_expert_net { hidden_units: [16] } share_expert_net { hidden_units: [16] } }
        extraction_networks { network_name: "l2" expert_num_per_task: 2 share_num: 1
            task_expert_net { hidden_units: [8] } share_expert_net { hidden_units: [8] } }""" + towers() + "}",
    "simple_multi_task": ALL + f'model_class: "SimpleMultiTask" simple_multi_task {{ {towers()} }}',
    "esmm": group("user", "user", "hour") + group("item", "item", "brand", "price") + """model_class: "ESMM" esmm {
        groups { input: "user" dnn { hidden_units: [16] } } groups { input: "item" dnn { hidden_units: [16] } }
        ctr_tower { tower_name: "ctr" label_name: "clk" dnn { hidden_units: [16] } metrics_set { auc {} } }
        cvr_tower { tower_name: "cvr" label_name: "buy" dnn { hidden_units: [16, 8] dropout_ratio: [0.1, 0.2] }
                    metrics_set { auc { num_thresholds: 10000 } } } }""",
    "dbmtl": group("all", "user", "item", "brand", "hour", inner="""sequence_features { group_name: "s"
        tf_summary: false seq_att_map { key: "item" key: "brand" hist_seq: "seen" hist_seq: "brands" } }""")
        + """model_class: "DBMTL" dbmtl { bottom_dnn { hidden_units: [32] activation: "dice" }
        expert_dnn { hidden_units: 16 } num_expert: 2 l2_regularization: 1e-6
        task_towers { tower_name: "ctr" label_name: "clk" dnn { hidden_units: [16] } relation_dnn { hidden_units: 8 }
            losses { loss_type: CLASSIFICATION weight: 1.0 } losses { loss_type: PAIR_WISE_LOSS weight: 3.0 } }
        task_towers { tower_name: "cvr" label_name: "buy" dnn { hidden_units: [16] } relation_dnn { hidden_units: 8 }
            losses { loss_type: JRC_LOSS jrc_loss { session_name: "user" alpha: 0.5 } }
            relation_tower_names: ["ctr"] } }""",
    "aitm_by_towers": ALL + f"""model_class: "MultiTaskModel" model_name: "AITM" backbone {{ {BOTTOM} }} model_params {{
        {towers(CALIBRATED + 'relation_tower_names: ["ctr"] use_ait_module: true ait_project_dim: 12',
                'use_ait_module: true')} l2_regularization: 1e-6 }}""",
    "aitm_by_blocks": ALL + 'model_class: "MultiTaskModel" backbone {'
        + block("aitm", 'inputs { block_name: "second" } inputs { block_name: "first" }',
                "class_name: 'AITMTower' aitm { transfer_mlp { hidden_units: 16 } }", "merge_inputs_into_list: true")
        + block("first", 'inputs { block_name: "all" }', "class_name: 'MLP' mlp { hidden_units: 16 }")
        + block("second", 'inputs { block_name: "all" }',
                "class_name: 'MLP' mlp { hidden_units: [20, 16] use_final_bn: false final_activation: 'linear' }")
        + BOTTOM + f"""output_blocks: ["first", "aitm"] }} model_params {{
        {towers(CALIBRATED + 'relation_tower_names: ["ctr"] relation_dnn { hidden_units: 4 }')} }}""",
    "mmoe_by_blocks": ALL + """model_class: "MultiTaskModel" model_name: "MMoE" backbone {
        blocks { name: "all" inputs { feature_group_name: "all" } input_layer { only_output_feature_list: true } }
        blocks { name: "senet" inputs { block_name: "all" }
                 keras_layer { class_name: "SENet" senet { reduction_ratio: 4 } } }
        blocks { name: "mmoe" inputs { block_name: "senet" }
                 keras_layer { class_name: "MMoE" mmoe { num_task: 2 num_expert: 3 expert_mlp { hidden_units: 16 } } } }
        } model_params { """ + towers() + "}",
    "deepfm": WIDE_DEEP + """model_class: "DeepFM" deepfm { dnn { hidden_units: [16] } final_dnn { hidden_units: [8] }
        wide_output_dim: 4 l2_regularization: 1e-5 }""",
    "deepfm_without_a_final_dnn": WIDE_DEEP + 'model_class: "DeepFM" deepfm { dnn { hidden_units: 16 } }',
    "fm": WIDE_DEEP + 'model_class: "FM" fm { }',
    "wide_and_deep": group("wide", "user", "item") + group("deep", *FEATURES) + """model_class: "WideAndDeep"
        wide_and_deep { dnn { hidden_units: [16] } final_dnn { hidden_units: [8] } }""",
    "dcn": ALL + """model_class: "DCN" dcn { deep_tower { input: "all" dnn { hidden_units: [16] } }
        cross_tower { input: "all" cross_num: 3 } final_dnn { hidden_units: [8] } l2_regularization: 1e-6 }""",
    "autoint": ALL + """model_class: "AutoInt"
        autoint { multi_head_num: 2 multi_head_size: 8 interacting_layer_num: 2 }""",
    "dlrm": group("dense", "price") + group("sparse", "user", "item", "brand") + """model_class: "DLRM"
        dlrm { bot_dnn { hidden_units: [16, 8] } top_dnn { hidden_units: [8] } }""",
    "multi_tower": USER_ITEM + """model_class: "MultiTower" multi_tower {
        towers { input: "user" dnn { hidden_units: 16 } } towers { input: "item" dnn { hidden_units: 16 } }
        final_dnn { hidden_units: 8 } l2_regularization: 1e-6 }
        losses { loss_type: F1_REWEIGHTED_LOSS weight: 1.0 f1_reweighted_loss { f1_beta_square: 2.25 } }
        losses { loss_type: PAIR_WISE_LOSS weight: 1.0 }""",
    "multi_tower_din": USER_ITEM + """seq_att_groups { group_name: "din"
        seq_att_map { key: "item" key: "brand" hist_seq: "seen" hist_seq: "brands" } }
        model_class: "MultiTowerDIN" multi_tower {
        towers { input: "user" dnn { hidden_units: 16 } } towers { input: "item" dnn { hidden_units: 16 } }
        din_towers { input: "din" dnn { hidden_units: [16, 8, 1] } } final_dnn { hidden_units: 8 } }""",
    "multi_tower_bst": USER_ITEM + """seq_att_groups { group_name: "bst"
        seq_att_map { key: "item" hist_seq: "seen" } } model_class: "MultiTowerBST" multi_tower {
        towers { input: "user" dnn { hidden_units: 16 } } towers { input: "item" dnn { hidden_units: 16 } }
        bst_towers { input: "bst" seq_len: 10 multi_head_size: 4 } final_dnn { hidden_units: 8 } }""",
    "din": group("normal", *FEATURES) + group("sequence", "item", "brand", "seen", "brands")
        + """model_class: "RankModel" model_name: "DIN" backbone {
        blocks { name: "deep" inputs { feature_group_name: "normal" } input_layer { do_batch_norm: true } }
        blocks { name: "seq_input" inputs { feature_group_name: "sequence" }
                 input_layer { output_seq_and_normal_feature: true } }
        blocks { name: "DIN" inputs { block_name: "seq_input" } keras_layer { class_name: 'DIN' din {
                 attention_dnn { hidden_units: 32 hidden_units: 1 activation: "dice" } need_target_feature: true } } }
        top_mlp { hidden_units: [16] } } model_params { l2_regularization: 0 }""",
    "bst": group("normal", *FEATURES) + group("sequence", "item", "seen")
        + """model_class: "RankModel" backbone {
        blocks { name: "deep" inputs { feature_group_name: "normal" } }
        blocks { name: "seq_input" inputs { feature_group_name: "sequence" }
                 input_layer { output_seq_and_normal_feature: true } }
        blocks { name: "BST" inputs { block_name: "seq_input" } keras_layer { class_name: 'BST' bst { hidden_size: 8
                 num_hidden_layers: 1 num_attention_heads: 2 intermediate_size: 16 max_position_embeddings: 20 } } }
        concat_blocks: ["deep", "BST"] top_mlp { hidden_units: [16] } } model_params { }""",
    "ppnet": group("all", "user", "item", "brand") + group("memorize", "user", "hour")
        + 'model_class: "RankModel" model_name: "PPNet" backbone {'
        + block("ppnet", 'inputs { feature_group_name: "all" } inputs { feature_group_name: "memorize" }',
                'class_name: "PPNet" ppnet { mlp { hidden_units: [16, 8] } mode: "lazy" full_gate_input: true }',
                "merge_inputs_into_list: true") + "} model_params { l2_regularization: 1e-6 }",
    "masknet": ALL + 'model_class: "RankModel" model_name: "MaskNet" backbone {'
        + block("mask_net", 'inputs { feature_group_name: "all" }', """class_name: "MaskNet" masknet {
            mask_blocks { aggregation_size: 32 output_size: 16 } mask_blocks { aggregation_size: 32 output_size: 16 }
            mlp { hidden_units: [16] } }""") + 'concat_blocks: ["mask_net"] } model_params { }',
    "fibinet": ALL + """model_class: "RankModel" model_name: "FiBiNet" backbone {
        blocks { name: "all" inputs { feature_group_name: "all" } input_layer { only_output_feature_list: true } }
        blocks { name: "general" inputs { feature_group_name: "all" } input_layer { do_batch_norm: true } }"""
        + block("fibinet", 'inputs { block_name: "all" }', """class_name: "FiBiNet" fibinet {
            senet { reduction_ratio: 4 } bilinear { type: "each" num_output_units: 32 } mlp { hidden_units: [16] } }""")
        + 'concat_blocks: ["fibinet", "general"] top_mlp { hidden_units: 8 } } model_params { }',
    "towers_on_slices": ALL + """model_class: "MultiTaskModel" backbone {
        blocks { name: "mmoe" inputs { feature_group_name: "all" }
                 keras_layer { class_name: "MMoE" mmoe { num_task: 2 num_expert: 3 expert_mlp { hidden_units: 16 } } } }
        blocks { name: "first" inputs { block_name: "mmoe" input_slice: "[0]" } }
        blocks { name: "second" inputs { block_name: "mmoe" input_fn: "lambda x: x[1]" }
                 layers { keras_layer { class_name: "Dense" st_params {
                          fields { key: "units" value { number_value: 16 } }
                          fields { key: "activation" value { string_value: "relu" } } } } }
                 layers { keras_layer { class_name: "Dropout" st_params { fields { key: "rate"
                          value { number_value: 0.1 } } } } } }
        output_blocks: ["first", "second"] } model_params { """ + towers() + "}",
    "every_layer": ALL + group("stack", "user", "item", "brand") + group("numbers", "count", "age") + """
        model_class: "RankModel" backbone {
        packages { name: "deep" blocks { name: "in" inputs { feature_group_name: "all" }
            keras_layer { class_name: "MLP" mlp { hidden_units: [16] } } }
            blocks { name: "normed" inputs { block_name: "in" } keras_layer { class_name: "LayerNormalization" } } }
        blocks { name: "fields" inputs { feature_group_name: "stack" } input_layer { only_output_3d_tensor: true } }
        blocks { name: "both" inputs { feature_group_name: "stack" }
                 input_layer { output_2d_tensor_and_feature_list: true } }
        blocks { name: "flat" inputs { feature_group_name: "all" }
                 input_layer { do_layer_norm: true dropout_rate: 0.1 } }
        blocks { name: "deep" inputs { package_name: "deep" } }
        blocks { name: "crossed" inputs { block_name: "deep" } inputs { block_name: "deep" }
                 merge_inputs_into_list: true
                 recurrent { num_steps: 2 fixed_input_index: 0 keras_layer { class_name: "Cross" } } }"""
        + block("fm", 'inputs { block_name: "both" input_slice: "[1]" }', 'class_name: "FM" fm { use_variant: true }')
        + block("dot", 'inputs { block_name: "fields" }', 'class_name: "DotInteraction"')
        + block("pairs", 'inputs { block_name: "fields" }',
                'class_name: "Bilinear" bilinear { type: "all" num_output_units: 8 }')
        + block("autodis", 'inputs { feature_group_name: "numbers" }', """class_name: "AutoDisEmbedding"
            auto_dis_embedding { embedding_dim: 8 num_bins: 4 keep_prob: 0.8 temperature: 0.5 }""")
        + block("waves", 'inputs { feature_group_name: "numbers" }',
                'class_name: "PeriodicEmbedding" periodic_embedding { embedding_dim: 8 sigma: 0.1 }')
        + block("way", 'inputs { block_name: "flat" }', 'class_name: "Highway" highway { emb_size: 8 num_layers: 2 }')
        + block("masked", 'inputs { block_name: "deep" } inputs { block_name: "flat" }',
                'class_name: "MaskBlock" mask_block { output_size: 8 aggregation_size: 8 }',
                "merge_inputs_into_list: true")
        + block("added", 'inputs { block_name: "deep" } inputs { block_name: "crossed" }', 'class_name: "Add"',
                "merge_inputs_into_list: true")
        + """blocks { name: "towers" inputs { block_name: "flat" }
                 repeat { num_repeat: 3 keras_layer { class_name: "MLP" mlp { hidden_units: [8] } } } }
        blocks { name: "mean" inputs { block_name: "towers" } lambda { expression: "lambda x: tf.add_n(x)" } }
        blocks { name: "first_two" inputs { block_name: "towers" input_slice: "[0:2]" } }
        top_mlp { hidden_units: 8 } } model_params { }""",
}


def config(model: str) -> str:
    return PIPELINE.replace("MODEL", model)


def rows(count: int, seed: int = 0) -> str:
    """CSV without a header line: empty cells, hours that are none, values of every column."""
    chance, lines = random.Random(seed), []
    for _ in range(count):
        click = chance.random() < 0.4
        several = lambda letter, most: "|".join(
            f"{letter}{chance.randrange(20)}" for _ in range(chance.randrange(most)))
        lines.append(",".join(map(str, (
            int(click), int(click and chance.random() < 0.3), f"u{chance.randrange(50)}", f"i{chance.randrange(20)}",
            f"b{chance.randrange(20)}", chance.choice([chance.randrange(24), "", 99]), round(chance.random() * 30, 2),
            several("t", 4), several("i", 30), several("b", 6), chance.randrange(9), chance.choice(["", 20, 55.5])))))
    return "\n".join(lines) + "\n"


def write_rows(folder: Path) -> None:
    (folder / "train.csv").write_text(rows(300))
    (folder / "valid.csv").write_text(rows(150, seed=1))
