use serde_json::{Map, Value};
use swara_kernels::Device;
use swara_kernels::ops::attention::MAX_HEAD_DIM;
use swara_kernels::ops::embedding::Tables;
use swara_kernels::ops::rope::Style;

use crate::config::check_ranges;
use crate::transformer::{Block, FeedForward, Llama3, Norm, Rotary};
use crate::{Error, Result};

/// The numbers of a CSM, by the keys of `config.json` in `transformers`. What a file leaves out is what `CsmConfig` takes it for; keys
/// that have no say in what is computed are of no consequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub backbone: Llama,
    pub depth: Llama,
    pub num_codebooks: usize,
    /// Rows of the table of each codebook, and what is drawn from: its codewords and a few more.
    pub vocab_size: usize,
    pub text_vocab_size: usize,
    /// Rows that the backbone sees.
    pub max_position_embeddings: usize,
    /// A frame of nothing else ends what is said.
    pub codebook_eos_token_id: i32,
    /// Whether the depth decoder's table is the backbone's.
    pub tie_codebooks_embeddings: bool,
}

/// One of the two transformers.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: Option<Llama3>,
}

/// Scaling of both transformers as published.
pub(super) const SCALING: Llama3 = Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192.0 };

impl Llama {
    /// Llama 3.2 of 1 billion parameters.
    const BACKBONE: Llama = Llama {
        hidden_size: 2048,
        intermediate_size: 8192,
        num_hidden_layers: 16,
        num_attention_heads: 32,
        num_key_value_heads: 8,
        head_dim: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: None,
    };

    const DEPTH: Llama =
        Llama { hidden_size: 1024, num_hidden_layers: 4, num_attention_heads: 8, num_key_value_heads: 2, head_dim: 128, ..Llama::BACKBONE };

    fn read(fields: &Fields, default: &Llama) -> Result<Llama> {
        for (key, expected) in [("attention_bias", false), ("mlp_bias", false)] {
            if fields.get(key, Value::as_bool, "true or false")?.unwrap_or(expected) != expected {
                return Err(fields.fail(key, "is not known here yet"));
            }
        }
        if let Some(found) = fields.get("hidden_act", Value::as_str, "a name")?.filter(|&name| name != "silu") {
            return Err(fields.fail("hidden_act", &format!("is {found:?}, expected \"silu\"")));
        }
        let (hidden_size, heads) =
            (fields.size("hidden_size", default.hidden_size)?, fields.size("num_attention_heads", default.num_attention_heads)?);
        // Absent it is that of the published model, null as many as there are queries.
        let kv_heads = match fields.map.get("num_key_value_heads") {
            Some(Value::Null) => heads,
            _ => fields.size("num_key_value_heads", default.num_key_value_heads)?,
        };
        let (rope_theta, rope_scaling) = fields.rope(default.rope_theta)?;
        Ok(Llama {
            hidden_size,
            intermediate_size: fields.size("intermediate_size", default.intermediate_size)?,
            num_hidden_layers: fields.size("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim: fields.size("head_dim", hidden_size / heads.max(1))?,
            rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(default.rms_norm_eps),
            rope_theta,
            rope_scaling,
        })
    }

    /// `prefix` stands before the keys.
    fn check(&self, prefix: &str) -> Result<()> {
        let key = |name: &str| format!("{prefix}{name}");
        let names =
            ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"].map(key);
        let found = [
            (self.hidden_size, 1 << 15),
            (self.intermediate_size, 1 << 18),
            (self.num_hidden_layers, 256),
            (self.num_attention_heads, 512),
            (self.num_key_value_heads, 512),
            (self.head_dim, MAX_HEAD_DIM),
        ];
        let ranges: Vec<_> = names.iter().zip(found).map(|(name, (found, most))| (name.as_str(), found, 1, most)).collect();
        check_ranges(&ranges)?;
        let fail = |what: String| Err(Error::Config(what));
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv_heads) {
            return fail(format!("{prefix}num_attention_heads is {heads}, no multiple of the {kv_heads} of num_key_value_heads"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail(format!("{prefix}head_dim is {}, expected an even number", self.head_dim));
        }
        if !(0.0..1.0).contains(&self.rms_norm_eps) {
            return fail(format!("{prefix}rms_norm_eps is {}, expected 0 to 1", self.rms_norm_eps));
        }
        if !(1.0..=1e12).contains(&self.rope_theta) {
            return fail(format!("{prefix}rope_theta is {}, expected 1 to 1e12", self.rope_theta));
        }
        match self.rope_scaling {
            Some(Llama3 { factor, low, high, original })
                if !((1.0..=1e6).contains(&factor) && low > 0.0 && high > low && high <= 1e6 && (1.0..=1e9).contains(&original)) =>
            {
                fail(format!(
                    "{prefix}rope_scaling: factor {factor}, low {low}, high {high}, original context {original} do not fit each other"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Its layers, called `NAME.layers.N`.
    pub(super) fn blocks(&self, name: &str, style: Style, window: Option<usize>) -> Vec<Block> {
        let block = |layer: usize| Block {
            name: format!("{name}.layers.{layer}"),
            width: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            hidden: self.intermediate_size,
            window,
            rotary: Some(Rotary { theta: self.rope_theta, style, scaling: self.rope_scaling }),
            norm: Norm::Rms,
            epsilon: self.rms_norm_eps,
            feed_forward: FeedForward::SiluGate,
            scaled: false,
            crossed: false,
        };
        (0..self.num_hidden_layers).map(block).collect()
    }
}

impl Config {
    /// CSM of 1 billion parameters, as published.
    pub fn csm_1b() -> Config {
        Config {
            backbone: Llama { rope_scaling: Some(SCALING), ..Llama::BACKBONE },
            depth: Llama { rope_scaling: Some(SCALING), ..Llama::DEPTH },
            num_codebooks: 32,
            vocab_size: 2051,
            text_vocab_size: 128_256,
            max_position_embeddings: 2048,
            codebook_eos_token_id: 0,
            tie_codebooks_embeddings: true,
        }
    }

    /// # Errors
    /// [`Error::Config`] for what is no such model, or one that is not known here.
    pub fn from_json(text: &str) -> Result<Config> {
        let found: Value = serde_json::from_str(text).map_err(|e| Error::Config(e.to_string()))?;
        let Value::Object(map) = &found else { return Err(Error::Config("expected a JSON object".into())) };
        let fields = Fields { map, prefix: "" };
        let none = Map::new();
        let depth_fields = Fields { map: fields.object("depth_decoder_config")?.unwrap_or(&none), prefix: "depth_decoder_config." };
        let published = Config::csm_1b();
        let config = Config {
            backbone: Llama::read(&fields, &Llama::BACKBONE)?,
            depth: Llama::read(&depth_fields, &Llama::DEPTH)?,
            num_codebooks: fields.size("num_codebooks", published.num_codebooks)?,
            vocab_size: fields.size("vocab_size", published.vocab_size)?,
            text_vocab_size: fields.size("text_vocab_size", published.text_vocab_size)?,
            max_position_embeddings: fields.size("max_position_embeddings", published.max_position_embeddings)?,
            codebook_eos_token_id: i32::try_from(fields.size("codebook_eos_token_id", 0)?).unwrap_or(-1),
            tie_codebooks_embeddings: fields.get("tie_codebooks_embeddings", Value::as_bool, "true or false")?.unwrap_or(true),
        };
        config.check()?;
        for (key, default, expected) in [
            ("num_codebooks", published.num_codebooks, config.num_codebooks),
            ("vocab_size", published.vocab_size, config.vocab_size),
            ("backbone_hidden_size", published.backbone.hidden_size, config.backbone.hidden_size),
        ] {
            let found = depth_fields.size(key, default)?;
            if found != expected {
                return Err(depth_fields.fail(key, &format!("is {found}, the backbone has {expected}")));
            }
        }
        Ok(config)
    }

    /// That `ids` are whole rows of what the model knows.
    ///
    /// # Errors
    /// Another number of ids; one that its table does not have.
    pub fn check_rows(&self, ids: &[i32]) -> Result<()> {
        let width = self.num_codebooks + 1;
        if !ids.len().is_multiple_of(width) {
            return Err(Error::Argument(format!("{} ids are not rows of {width}", ids.len())));
        }
        Ok(Tables::new(&Device::Cpu, &self.table_sizes())?.check(ids)?)
    }

    /// Rows of the tables of a row's ids: of the codes, then of the text.
    pub(super) fn table_sizes(&self) -> Vec<usize> {
        let mut sizes = vec![self.vocab_size; self.num_codebooks];
        sizes.push(self.text_vocab_size);
        sizes
    }

    pub(super) fn check(&self) -> Result<()> {
        check_ranges(&[
            ("num_codebooks", self.num_codebooks, 2, 128),
            ("vocab_size", self.vocab_size, 2, 1 << 20),
            ("text_vocab_size", self.text_vocab_size, 1, 1 << 22),
            ("max_position_embeddings", self.max_position_embeddings, 1, 1 << 20),
            (
                "codebook_eos_token_id",
                usize::try_from(self.codebook_eos_token_id).unwrap_or(usize::MAX),
                0,
                self.vocab_size.saturating_sub(1),
            ),
        ])?;
        self.backbone.check("")?;
        self.depth.check("depth_decoder_config.")
    }
}

/// Values of a JSON object, which may be anything.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    prefix: &'a str,
}

impl<'a> Fields<'a> {
    fn fail(&self, key: &str, why: &str) -> Error {
        Error::Config(format!("{}{key} {why}", self.prefix))
    }

    /// None if it is not there, or null.
    fn get<T>(&self, key: &str, read: impl Fn(&'a Value) -> Option<T>, expected: &str) -> Result<Option<T>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => {
                    let shown: String = value.to_string().chars().take(40).collect();
                    Err(self.fail(key, &format!("is {shown}, expected {expected}")))
                }
            },
        }
    }

    fn size(&self, key: &str, default: usize) -> Result<usize> {
        let read = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        Ok(self.get(key, read, "a number of things")?.unwrap_or(default))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, Value::as_f64, "a number")
    }

    fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.get(key, Value::as_object, "an object")
    }

    /// Base and scaling: `rope_theta` and `rope_scaling`, or since transformers 5 both in `rope_parameters`.
    fn rope(&self, default: f64) -> Result<(f64, Option<Llama3>)> {
        let (key, map) = match self.object("rope_parameters")? {
            Some(map) => ("rope_parameters", Some(map)),
            None => ("rope_scaling", self.object("rope_scaling")?),
        };
        let Some(map) = map else { return Ok((self.number("rope_theta")?.unwrap_or(default), None)) };
        let prefix = format!("{}{key}.", self.prefix);
        let inner = Fields { map, prefix: &prefix };
        let theta = inner.number("rope_theta")?.or(self.number("rope_theta")?).unwrap_or(default);
        let need = |key: &str| inner.number(key)?.ok_or_else(|| inner.fail(key, "is missing"));
        let name = |key| inner.get(key, Value::as_str, "a name");
        match name("rope_type")?.or(name("type")?) {
            None | Some("default") => Ok((theta, None)),
            Some("llama3") => {
                let [factor, low, high] = ["factor", "low_freq_factor", "high_freq_factor"].map(need);
                Ok((theta, Some(Llama3 { factor: factor?, low: low?, high: high?, original: need("original_max_position_embeddings")? })))
            }
            Some(found) => Err(inner.fail("rope_type", &format!("is {found:?}, expected llama3 or default"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_published_file_is_the_published_model() {
        let scaling = |low: f64, high: f64, original: usize| json!({"factor": 32.0, "low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": original, "rope_type": "llama3"});
        let file = json!({"model_type": "csm", "hidden_size": 2048, "head_dim": 64, "rope_scaling": scaling(0.125, 0.5, 1024),
            "depth_decoder_config": {"rope_scaling": scaling(0.001953125, 0.0078125, 16), "max_position_embeddings": 33}});
        let found = Config::from_json(&file.to_string()).unwrap();
        let same = |a: Llama3| Llama3 { low: a.low * 8192.0 / a.original, high: a.high * 8192.0 / a.original, original: 8192.0, ..a };
        for part in [&found.backbone, &found.depth] {
            assert_eq!(part.rope_scaling.map(same), Some(SCALING));
        }
        let unscaled = |c: Config| Config {
            backbone: Llama { rope_scaling: None, ..c.backbone },
            depth: Llama { rope_scaling: None, ..c.depth },
            ..c
        };
        assert_eq!(unscaled(found), unscaled(Config::csm_1b()));
        let since = json!({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}, "rope_theta": 9.0});
        assert_eq!(Config::from_json(&since.to_string()).unwrap().backbone.rope_theta, 7.0);
    }

    #[test]
    fn what_is_no_such_model_is_refused() {
        let llama3 = |key: &str, value: Value| {
            let mut scaling = json!({"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64, "rope_type": "llama3"});
            scaling[key] = value;
            scaling
        };
        for (key, value, why) in [
            ("hidden_size", json!(0), "hidden_size is 0"),
            ("hidden_size", json!(-1), "hidden_size is -1"),
            ("hidden_size", json!(u64::MAX), "hidden_size is"),
            ("hidden_size", json!("x".repeat(1 << 20)), "hidden_size is \"xxx"),
            ("hidden_size", json!(1024), "depth_decoder_config.backbone_hidden_size is 2048, the backbone has 1024"),
            ("num_attention_heads", json!(0), "num_attention_heads is 0"),
            ("num_attention_heads", json!(20), "no multiple of the 8"),
            ("num_attention_heads", json!(8), "head_dim is 256"),
            ("num_key_value_heads", json!(0), "num_key_value_heads is 0"),
            ("head_dim", json!(7), "even"),
            ("num_hidden_layers", json!(100_000), "num_hidden_layers"),
            ("num_codebooks", json!(1), "num_codebooks is 1"),
            ("num_codebooks", json!(16), "depth_decoder_config.num_codebooks is 32"),
            ("vocab_size", json!(1 << 30), "vocab_size"),
            ("text_vocab_size", json!(1.5), "text_vocab_size is 1.5"),
            ("max_position_embeddings", json!(0), "max_position_embeddings"),
            ("codebook_eos_token_id", json!(2051), "codebook_eos_token_id"),
            ("rms_norm_eps", json!(-1), "rms_norm_eps"),
            ("rope_theta", json!(0), "rope_theta is 0"),
            ("rope_theta", json!([1]), "rope_theta is [1]"),
            ("rope_scaling", json!(3), "rope_scaling is 3"),
            ("rope_scaling", json!({"rope_type": "yarn"}), "rope_scaling.rope_type is \"yarn\""),
            ("rope_scaling", json!({"rope_type": "llama3"}), "rope_scaling.factor is missing"),
            ("rope_scaling", llama3("factor", json!(0)), "do not fit"),
            ("rope_scaling", llama3("high_freq_factor", json!(1)), "do not fit"),
            ("rope_scaling", llama3("original_max_position_embeddings", json!(0)), "do not fit"),
            ("hidden_act", json!("gelu"), "hidden_act is \"gelu\""),
            ("attention_bias", json!(true), "attention_bias is not known"),
            ("mlp_bias", json!(1), "mlp_bias is 1"),
            ("tie_codebooks_embeddings", json!("yes"), "tie_codebooks_embeddings"),
            ("depth_decoder_config", json!([]), "depth_decoder_config is []"),
            ("depth_decoder_config", json!({"hidden_size": 0}), "depth_decoder_config.hidden_size is 0"),
            ("depth_decoder_config", json!({"vocab_size": 7}), "depth_decoder_config.vocab_size is 7"),
        ] {
            let error = Config::from_json(&json!({ key: value }).to_string()).unwrap_err().to_string();
            assert!(error.contains(why) && error.len() < 300, "{key}: {error}");
        }
        assert!(Config::from_json("[1]").is_err() && Config::from_json("{").is_err());
    }
}
