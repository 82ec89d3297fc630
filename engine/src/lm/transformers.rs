//! The configuration of `MoshiForConditionalGeneration` of transformers.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::config::{Config, Widths};
use crate::{Error, Result};

/// Whether a `config.json` is of that form: the package `moshi` has the same `model_type`, and other keys.
pub(super) fn is(json: &Value) -> bool {
    json.get("model_type").is_some_and(|kind| kind == "moshi") && json.get("dim").is_none() || json.get("depth_decoder_config").is_some()
}

/// What both decoders have.
struct Decoder {
    width: usize,
    layers: usize,
    heads: usize,
    kv_repeat: usize,
    /// Width within feed-forward layers.
    hidden: usize,
    gating: String,
    window: usize,
    norm: &'static str,
}

impl Decoder {
    /// What is left out is as in Moshi of 7 billion parameters.
    fn of(json: &Value, [width, layers, heads, window, wide]: [usize; 5]) -> Result<Decoder> {
        let (width, heads) = (get(json, "hidden_size", width)?, get(json, "num_attention_heads", heads)?);
        let wide: usize = get(json, "ffn_dim", wide)?;
        let kv_heads = get(json, "num_key_value_heads", None)?.unwrap_or(heads);
        if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 || !wide.is_multiple_of(2) {
            return Err(Error::Config(format!("num_key_value_heads {kv_heads} of {heads} and ffn_dim {wide} divide nothing")));
        }
        let head_dim = get(json, "head_dim", None)?.unwrap_or(width / heads);
        if head_dim.checked_mul(heads) != Some(width) {
            return Err(Error::Config(format!("head_dim is {head_dim}, expected {width} over {heads}")));
        }
        let norm = match get(json, "rms_norm_eps", 1e-8)? {
            1e-8 => "rms_norm_f32",
            1e-5 => "rms_norm",
            other => return Err(Error::Config(format!("rms_norm_eps is {other}, expected 1e-8 or 1e-5"))),
        };
        Ok(Decoder {
            width,
            layers: get(json, "num_hidden_layers", layers)?,
            heads,
            kv_repeat: heads / kv_heads,
            hidden: wide / 2,
            gating: get(json, "hidden_act", "silu".to_owned())?,
            window: get(json, "sliding_window", Some(window))?.unwrap_or(get(json, "max_position_embeddings", window)?),
            norm,
        })
    }

    /// That of moshi from which its rule makes `hidden`.
    fn feed_forward(&self) -> Result<usize> {
        let wide = self.hidden.saturating_mul(3).div_ceil(2);
        let found = [wide, wide + 1].into_iter().find(|&wide| super::config::hidden(&self.gating, self.width, wide) == self.hidden);
        found.ok_or_else(|| Error::Config(format!("ffn_dim is {}, which moshi has not for a width of {}", 2 * self.hidden, self.width)))
    }
}

fn get<T: DeserializeOwned>(json: &Value, key: &str, default: T) -> Result<T> {
    match json.get(key) {
        None => Ok(default),
        Some(value) => serde_json::from_value(value.clone()).map_err(|e| Error::Config(format!("{key}: {e}"))),
    }
}

pub(super) fn config(json: &Value) -> Result<Config> {
    let fail = |what: String| Err(Error::Config(what));
    let kind: String = get(json, "model_type", "moshi".into())?;
    if kind != "moshi" {
        return fail(format!("model_type is {kind:?}, expected moshi"));
    }
    let rope: Value = get(json, "rope_parameters", Value::Null)?;
    if !rope.is_null() && !rope.is_object() {
        return fail("rope_parameters are no object".into());
    }
    let turns: String = get(&rope, "rope_type", get(&rope, "type", "default".into())?)?;
    if !get(json, "rope_scaling", Value::Null)?.is_null() {
        return fail("rope_scaling is not known here".into());
    }
    if turns != "default" {
        return fail(format!("rope_type is {turns:?}, expected default"));
    }
    let codes: usize = get(json, "num_codebooks", 8)?;
    let nothing = Value::Null;
    let codec = json.get("audio_encoder_config").unwrap_or(&nothing);
    let card = get(json, "audio_vocab_size", None)?.map_or_else(|| get(codec, "codebook_size", 2048), Ok)?;
    let main = Decoder::of(json, [4096, 32, 32, 3000, 22528])?;
    let depth = Decoder::of(json.get("depth_decoder_config").unwrap_or(&nothing), [1024, 6, 16, 8, 5632])?;
    if depth.norm != main.norm {
        return fail("rms_norm_eps of the depth decoder is not that of the other".into());
    }
    if depth.window < codes {
        return fail(format!("sliding_window of the depth decoder is {}, expected {codes}", depth.window));
    }
    let most = Config::MOST_COLUMNS / 2;
    if codes == 0 || codes > most {
        return fail(format!("num_codebooks is {codes}, expected 1 to {most}"));
    }
    // The first code of a frame is on time, and the others are a step late.
    let late = |k: usize| usize::from(!k.is_multiple_of(codes));
    Ok(Config {
        dim: main.width,
        num_heads: main.heads,
        num_layers: main.layers,
        kv_repeat: main.kv_repeat,
        context: Some(main.window),
        // In `rope_parameters` since transformers 5.
        max_period: get(&rope, "rope_theta", get(json, "rope_theta", 10_000.0)?)?,
        norm: main.norm.into(),
        // Half a row more, lest rounding takes one.
        hidden_scale: (main.feed_forward()? as f64 + 0.5) / main.width.max(1) as f64,
        n_q: 2 * codes,
        dep_q: codes,
        card,
        text_card: get(json, "vocab_size", 32_000)?,
        delays: [0].into_iter().chain((0..2 * codes).map(late)).collect(),
        depformer_dim: depth.width,
        depformer_num_heads: Some(depth.heads),
        depformer_num_layers: Some(depth.layers),
        depformer_dim_feedforward: Some(Widths::All(depth.feed_forward()?)),
        depformer_gating: Some(depth.gating),
        depformer_kv_repeat: Some(depth.kv_repeat),
        gating: main.gating,
        ..Config::moshi()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_left_out_is_moshi() {
        let found = Config::from_json(r#"{"model_type": "moshi"}"#).unwrap();
        let expected = Config::moshi();
        assert_eq!([found.hidden(), found.depth_hidden(3)], [expected.hidden(), expected.depth_hidden(3)]);
        assert_eq!([found.dim, found.depformer_dim, found.n_q, found.card], [4096, 1024, 16, 2048]);
        assert_eq!((found.delays, found.context), (expected.delays, expected.context));
        let turned = Config::from_json(r#"{"model_type": "moshi", "rope_parameters": {"rope_theta": 700.0}}"#).unwrap();
        assert_eq!([found.max_period, turned.max_period], [10_000.0, 700.0]);
    }

    #[test]
    fn widths_come_out_as_they_are_written() {
        for (width, wide) in [(32, 88), (32, 82), (48, 256), (96, 512), (64, 22)] {
            let json = json!({"model_type": "moshi", "hidden_size": width, "num_attention_heads": 2, "ffn_dim": wide});
            assert_eq!(Config::from_json(&json.to_string()).unwrap().hidden(), wide / 2, "{wide} in {width}");
        }
    }

    #[test]
    fn what_is_no_such_model_is_refused() {
        for (key, value, why) in [
            ("model_type", json!("mimi"), "model_type"),
            ("num_codebooks", json!(0), "num_codebooks"),
            ("num_codebooks", json!(u64::MAX), "sliding_window"),
            ("num_key_value_heads", json!(0), "num_key_value_heads"),
            ("num_key_value_heads", json!(7), "num_key_value_heads"),
            ("num_attention_heads", json!(0), "num_"),
            ("head_dim", json!(64), "head_dim"),
            ("ffn_dim", json!(33), "ffn_dim"),
            ("ffn_dim", json!(u64::MAX - 1), "ffn_dim is"),
            ("rms_norm_eps", json!(1e-6), "rms_norm_eps"),
            ("rope_scaling", json!({"type": "linear"}), "rope_scaling"),
            ("rope_parameters", json!({"rope_type": "linear"}), "rope_type"),
            ("rope_parameters", json!({"type": "linear"}), "rope_type"),
            ("rope_parameters", json!(7), "rope_parameters"),
            ("hidden_act", json!("quick"), "quick"),
            ("hidden_size", json!("wide"), "hidden_size"),
        ] {
            let mut json = json!({"model_type": "moshi", "depth_decoder_config": {}});
            json[key] = value;
            let error = Config::from_json(&json.to_string()).unwrap_err().to_string();
            assert!(error.contains(why), "{key}: {error}");
        }
        let heads = json!({"model_type": "moshi", "num_attention_heads": 0, "num_key_value_heads": 7});
        assert!(Config::from_json(&heads.to_string()).unwrap_err().to_string().contains("num_key_value_heads 7 of 0"));
    }
}
