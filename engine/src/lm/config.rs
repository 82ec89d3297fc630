mod conditioners;

use serde::Deserialize;
use swara_kernels::ops::activation::Activation;
use swara_kernels::ops::attention::MAX_HEAD_DIM;
use swara_kernels::ops::rope::Style;

pub use self::conditioners::Fuser;
pub(super) use self::conditioners::{Conditioner, Kind};
use super::transformers;
use crate::transformer::{FeedForward, Norm, Rotary};
use crate::{Error, Result};

/// The numbers of a language model over audio codes, by the keys of moshi's `config.json`. What a file leaves out is what `LMModel` of
/// moshi takes it for; keys that have no say in what is computed are of no consequence.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Width of the temporal transformer.
    pub dim: usize,
    pub num_heads: usize,
    pub num_layers: usize,
    /// Query heads that share a head of keys and values.
    pub kv_repeat: usize,
    /// Steps that one sees, itself among them.
    pub context: Option<usize>,
    pub max_period: f64,
    pub positional_embedding: String,
    /// Of sines, where they are added.
    pub positional_scale: f64,
    pub norm: String,
    /// Width within feed-forward layers over `dim`, before a gate takes its share.
    pub hidden_scale: f64,
    pub gating: String,
    pub layer_scale: Option<f64>,
    pub causal: bool,
    pub cross_attention: bool,
    pub bias_proj: bool,

    /// Columns of audio codes that are fed, and the first of them, which are generated.
    pub n_q: usize,
    pub dep_q: usize,
    pub card: usize,
    pub text_card: usize,
    pub text_card_out: Option<usize>,
    pub existing_text_padding_id: i32,
    pub existing_text_end_padding_id: i32,
    /// Steps by which each column, text first, is late.
    pub delays: Vec<usize>,
    pub norm_emb: bool,
    #[serde(alias = "demux_second_stream")]
    pub demux_second_text_stream: bool,
    pub extra_heads_num_heads: usize,
    pub extra_heads_dim: usize,

    pub depformer_dim: usize,
    pub depformer_num_heads: Option<usize>,
    pub depformer_num_layers: Option<usize>,
    pub depformer_dim_feedforward: Option<Widths>,
    pub depformer_multi_linear: bool,
    pub depformer_weights_per_step: bool,
    /// The weights of each step.
    pub depformer_weights_per_step_schedule: Option<Vec<usize>>,
    pub depformer_low_rank_embeddings: Option<usize>,
    pub depformer_pos_emb: String,
    pub depformer_positional_scale: Option<f64>,
    pub depformer_max_period: Option<f64>,
    pub depformer_gating: Option<String>,
    pub depformer_norm: Option<String>,
    /// Null in a file is none; without the key it is `layer_scale`.
    #[serde(deserialize_with = "present")]
    pub depformer_layer_scale: Option<Option<f64>>,
    pub depformer_kv_repeat: Option<usize>,

    /// A file of low-rank updates beside the weights, what they are multiplied by, and their rank.
    pub lora_name: Option<String>,
    pub lora_scaling: f64,
    pub lora_rank: Option<usize>,

    /// `hibiki` reads the end of its text as padding; `personaplex` also draws what is heard.
    pub model_type: String,
    pub conditioners: serde_json::Map<String, serde_json::Value>,
    pub fuser: Option<Fuser>,
    /// How to draw, where whoever asks does not say.
    pub lm_gen_config: Drawn,
}

/// Temperatures and how many of the most probable tokens are kept.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Drawn {
    pub temp: f32,
    pub temp_text: f32,
    pub top_k: usize,
    pub top_k_text: usize,
}

impl Default for Drawn {
    fn default() -> Drawn {
        Drawn { temp: 0.8, temp_text: 0.7, top_k: 250, top_k_text: 25 }
    }
}

/// Sines and cosines of positions, added to rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sines {
    pub period: f64,
    pub scale: f64,
}

impl Sines {
    /// Radians a step of each of `width / 2` pairs: cosines are the first half of a row.
    pub fn frequencies(&self, width: usize) -> Vec<f64> {
        let last = (width / 2).saturating_sub(1) as f64;
        (0..width / 2).map(|i| self.period.powf(-(i as f64) / last)).collect()
    }

    /// Row of a position.
    pub fn row(&self, width: usize, position: usize) -> Vec<f32> {
        let phases: Vec<f64> = self.frequencies(width).iter().map(|f| position as f64 * f).collect();
        let values = phases.iter().map(|p| p.cos()).chain(phases.iter().map(|p| p.sin()));
        values.map(|v| (self.scale * v) as f32).collect()
    }
}

/// One width for all steps, or one for each set of weights.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Widths {
    All(usize),
    Each(Vec<usize>),
}

fn present<'de, D: serde::Deserializer<'de>>(value: D) -> std::result::Result<Option<Option<f64>>, D::Error> {
    Option::deserialize(value).map(Some)
}

impl Default for Config {
    fn default() -> Config {
        Config {
            dim: 128,
            num_heads: 8,
            num_layers: 0,
            kv_repeat: 1,
            context: None,
            max_period: 10_000.0,
            positional_embedding: "sin".into(),
            positional_scale: 1.0,
            norm: "layer_norm".into(),
            hidden_scale: 4.0,
            gating: "none".into(),
            layer_scale: None,
            causal: true,
            cross_attention: false,
            bias_proj: false,
            n_q: 8,
            dep_q: 8,
            card: 1024,
            text_card: 32_000,
            text_card_out: None,
            existing_text_padding_id: 3,
            existing_text_end_padding_id: 0,
            delays: vec![0],
            norm_emb: false,
            demux_second_text_stream: false,
            extra_heads_num_heads: 0,
            extra_heads_dim: 6,
            depformer_dim: 256,
            depformer_num_heads: None,
            depformer_num_layers: None,
            depformer_dim_feedforward: None,
            depformer_multi_linear: false,
            depformer_weights_per_step: false,
            depformer_weights_per_step_schedule: None,
            depformer_low_rank_embeddings: None,
            depformer_pos_emb: "sin".into(),
            depformer_positional_scale: None,
            depformer_max_period: None,
            depformer_gating: None,
            depformer_norm: None,
            depformer_layer_scale: None,
            depformer_kv_repeat: None,
            lora_name: None,
            lora_scaling: 2.0,
            lora_rank: None,
            model_type: "moshi".into(),
            conditioners: serde_json::Map::new(),
            fuser: None,
            lm_gen_config: Drawn::default(),
        }
    }
}

/// What the blocks of one of the two transformers have in common.
pub(super) struct Shape {
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub rotary: Option<Rotary>,
    pub sines: Option<Sines>,
    pub norm: Norm,
    pub epsilon: f64,
    pub feed_forward: FeedForward,
    pub scaled: bool,
}

impl Config {
    /// Most columns, steps of context and so on that a file may ask for.
    pub(super) const MOST_COLUMNS: usize = 128;

    /// A Moshi whose depth transformer was trained on both sides' codes, those that are heard being of no use when they come.
    pub(super) const PERSONAPLEX: &str = "personaplex";

    /// Moshi of 7 billion parameters, as published without a configuration.
    pub fn moshi() -> Config {
        let late = |k: usize| usize::from(!k.is_multiple_of(8));
        Config {
            dim: 4096,
            num_heads: 32,
            num_layers: 32,
            context: Some(3000),
            positional_embedding: "rope".into(),
            norm: "rms_norm_f32".into(),
            hidden_scale: 4.125,
            gating: "silu".into(),
            n_q: 16,
            dep_q: 8,
            card: 2048,
            delays: [0].into_iter().chain((0..16).map(late)).collect(),
            depformer_dim: 1024,
            depformer_num_heads: Some(16),
            depformer_num_layers: Some(6),
            depformer_dim_feedforward: Some(Widths::All(4224)),
            depformer_multi_linear: true,
            depformer_weights_per_step: true,
            depformer_pos_emb: "none".into(),
            ..Config::default()
        }
    }

    /// [`Config::moshi`] with rows of 1024 and 24 layers: 1.1 billion weights, most of them the depth transformer's.
    pub fn moshi_1b() -> Config {
        Config { dim: 1024, num_heads: 16, num_layers: 24, ..Config::moshi() }
    }

    /// # Errors
    /// [`Error::Config`] for what is no such model, or one that is not known here.
    pub fn from_json(text: &str) -> Result<Config> {
        let fail = |e: serde_json::Error| Error::Config(e.to_string());
        let json: serde_json::Value = serde_json::from_str(text).map_err(fail)?;
        let config = match transformers::is(&json) {
            true => transformers::config(&json)?,
            // NVIDIA's names the model, and no number of it.
            false if json["model_type"] == Self::PERSONAPLEX && json.get("dim").is_none() => {
                Config { model_type: Self::PERSONAPLEX.into(), ..Config::moshi() }
            }
            false => serde_json::from_value::<Config>(json).map_err(fail)?.of_one_side(),
        };
        config.check()?;
        Ok(config)
    }

    /// The same model without those steps of the depth transformer that draw what is heard.
    fn of_one_side(mut self) -> Config {
        if self.model_type == Self::PERSONAPLEX && self.dep_q == self.n_q {
            self.dep_q = self.n_q / 2;
            if let Some(schedule) = self.depformer_weights_per_step_schedule.as_mut() {
                schedule.truncate(self.dep_q);
            }
            if let Some(Widths::Each(each)) = self.depformer_dim_feedforward.as_mut() {
                each.truncate(self.dep_q);
            }
        }
        self
    }

    /// Whether both sides have as many codes.
    pub fn full_duplex(&self) -> bool {
        self.dep_q > 0 && self.heard() == self.dep_q
    }

    /// Columns that are given: what is heard.
    pub fn heard(&self) -> usize {
        self.n_q.saturating_sub(self.dep_q)
    }

    /// Token that begins every column, text first.
    pub(super) fn initial(&self) -> Vec<i32> {
        [self.text_card as i32].into_iter().chain(std::iter::repeat_n(self.card as i32, self.n_q)).collect()
    }

    /// Tokens of text that the model knows, the one that begins it among them. Two texts in one token are
    /// `first + (second + 1) (text_card + 1)`, without the second if that is its own first.
    pub fn texts(&self) -> usize {
        let one = self.text_card + 1;
        if self.demux_second_text_stream { one * (one + 1) } else { one }
    }

    pub fn text_outputs(&self) -> usize {
        self.text_card_out.unwrap_or(self.text_card)
    }

    /// Sets of weights of the depth transformer, and which of them step `k` takes.
    pub(super) fn sets(&self) -> usize {
        self.count(self.depformer_weights_per_step)
    }

    pub(super) fn set(&self, k: usize) -> usize {
        self.which(self.depformer_weights_per_step, k)
    }

    /// Projections from the temporal to the depth transformer, and which of them step `k` takes.
    pub(super) fn inputs(&self) -> usize {
        self.count(self.depformer_multi_linear)
    }

    pub(super) fn input(&self, k: usize) -> usize {
        self.which(self.depformer_multi_linear, k)
    }

    /// How many there are of what steps share by the schedule, or, unless it is there `per_step`, all of them.
    fn count(&self, per_step: bool) -> usize {
        (0..self.dep_q).map(|k| self.which(per_step, k) + 1).max().unwrap_or(1)
    }

    fn which(&self, per_step: bool, k: usize) -> usize {
        match &self.depformer_weights_per_step_schedule {
            _ if !per_step => 0,
            Some(schedule) => schedule[k],
            None => k,
        }
    }

    pub(super) fn temporal(&self) -> Result<Shape> {
        let (norm, epsilon) = norm(&self.norm)?;
        let (rotary, sines) = positions("positional_embedding", &self.positional_embedding, self.max_period, self.positional_scale)?;
        Ok(Shape {
            width: self.dim,
            layers: self.num_layers,
            heads: self.num_heads,
            kv_heads: self.num_heads / self.kv_repeat.max(1),
            rotary,
            sines,
            norm,
            epsilon,
            feed_forward: feed_forward("gating", &self.gating)?,
            scaled: self.layer_scale.is_some(),
        })
    }

    pub(super) fn depth(&self) -> Result<Shape> {
        let (norm, epsilon) = norm(&self.norm)?;
        let heads = self.depformer_num_heads.unwrap_or(self.num_heads);
        let period = self.depformer_max_period.unwrap_or(self.max_period);
        let scale = self.depformer_positional_scale.unwrap_or(self.positional_scale);
        let (rotary, sines) = positions("depformer_pos_emb", &self.depformer_pos_emb, period, scale)?;
        Ok(Shape {
            width: self.depformer_dim,
            layers: self.depformer_num_layers.unwrap_or(self.num_layers),
            heads,
            kv_heads: heads / self.depformer_kv_repeat.unwrap_or(self.kv_repeat).max(1),
            rotary,
            sines,
            norm,
            epsilon,
            feed_forward: feed_forward("depformer_gating", self.depformer_gating.as_ref().unwrap_or(&self.gating))?,
            scaled: self.depformer_layer_scale.unwrap_or(self.layer_scale).is_some(),
        })
    }

    /// Width within the feed-forward layers of the temporal transformer.
    pub(super) fn hidden(&self) -> usize {
        hidden(&self.gating, self.dim, (self.hidden_scale * self.dim as f64) as usize)
    }

    /// Those of the depth transformer's `set`.
    pub(super) fn depth_hidden(&self, set: usize) -> usize {
        let wide = match &self.depformer_dim_feedforward {
            Some(Widths::All(wide)) => *wide,
            Some(Widths::Each(each)) => each.get(set).copied().unwrap_or(0),
            None => (self.hidden_scale * self.depformer_dim as f64) as usize,
        };
        hidden(self.depformer_gating.as_ref().unwrap_or(&self.gating), self.depformer_dim, wide)
    }

    pub(super) fn depth_norm(&self) -> Result<Option<(Norm, f64)>> {
        self.depformer_norm.as_deref().map(norm).transpose()
    }

    pub(super) fn check(&self) -> Result<()> {
        let fail = |what: String| Err(Error::Config(what));
        let ranges = [
            ("dim", self.dim, 1, 1 << 15),
            ("num_heads", self.num_heads, 1, 512),
            ("num_layers", self.num_layers, 1, 256),
            ("kv_repeat", self.kv_repeat, 1, 512),
            ("context", self.context.unwrap_or(0), 1, 1 << 20),
            ("n_q", self.n_q, 0, Self::MOST_COLUMNS),
            ("dep_q", self.dep_q, 0, self.n_q),
            ("card", self.card, 1, 1 << 20),
            ("text_card", self.text_card, 1, 1 << 20),
            ("text_card_out", self.text_outputs(), 1, 1 << 20),
            ("extra_heads_num_heads", self.extra_heads_num_heads, 0, 64),
            ("extra_heads_dim", self.extra_heads_dim, 1, 1 << 16),
            ("feed-forward width", self.hidden(), 1, 1 << 18),
        ];
        crate::config::check_ranges(&ranges)?;
        if self.delays.len() != self.n_q + 1 || self.delays.iter().any(|&d| d > 1 << 12) {
            return fail(format!("delays must be {} numbers up to 4096, text first: {:?}", self.n_q + 1, self.delays));
        }
        if !(self.lora_scaling as f32).is_finite() {
            return fail(format!("lora_scaling is {}", self.lora_scaling));
        }
        if !self.causal {
            return fail("a model that is not causal".into());
        }
        if self.demux_second_text_stream {
            if self.norm_emb {
                return fail("norm_emb beside demux_second_text_stream, which moshi does not have".into());
            }
            crate::config::check_ranges(&[
                ("text_card of two texts", self.text_card, 1, 46_339),
                ("text_card_out", self.text_outputs(), 1, self.texts()),
            ])?;
        }
        crate::config::check_ranges(&[("number of conditioners", self.conditioners()?.len(), 0, 64)])?;
        self.fused()?;
        let temporal = self.temporal()?;
        temporal.check("")?;
        if self.dep_q == 0 {
            return Ok(());
        }
        let schedule = self.depformer_weights_per_step_schedule.as_deref().unwrap_or(&[]);
        if !schedule.is_empty() && (schedule.len() != self.dep_q || schedule.iter().any(|&set| set >= self.dep_q)) {
            return fail(format!("depformer_weights_per_step_schedule must be {} numbers below that: {schedule:?}", self.dep_q));
        }
        if self.depformer_weights_per_step_schedule.is_some() && schedule.is_empty() {
            return fail("depformer_weights_per_step_schedule is empty".into());
        }
        let depth = self.depth()?;
        depth.check("depformer_")?;
        self.depth_norm()?;
        if let Some(Widths::Each(each)) = &self.depformer_dim_feedforward
            && each.len() != self.sets()
        {
            return fail(format!("depformer_dim_feedforward must be {} numbers: {each:?}", self.sets()));
        }
        crate::config::check_ranges(&[
            ("depformer_dim", self.depformer_dim, 1, 1 << 14),
            ("depformer_num_layers", depth.layers, 1, 256),
            ("depformer_low_rank_embeddings", self.depformer_low_rank_embeddings.unwrap_or(1), 1, 1 << 14),
            ("depformer feed-forward width, least", (0..self.sets()).map(|set| self.depth_hidden(set)).min().unwrap_or(0), 1, 1 << 18),
            ("depformer feed-forward width", (0..self.sets()).map(|set| self.depth_hidden(set)).max().unwrap_or(0), 1, 1 << 18),
        ])?;
        if self.depformer_weights_per_step && depth.feed_forward == FeedForward::Gelu {
            return fail("depformer_gating is none, which has no weights per step".into());
        }
        Ok(())
    }
}

impl Shape {
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }

    fn check(&self, prefix: &str) -> Result<()> {
        let &Shape { width, heads, kv_heads, .. } = self;
        let sound = |sines: &Sines| (1.0..1e12).contains(&sines.period) && sines.scale.abs() < 1e6;
        if let Some(sines) = self.sines.filter(|sines| !sound(sines)) {
            return Err(Error::Config(format!("{prefix}positions as sines of period {} and scale {}", sines.period, sines.scale)));
        }
        if self.sines.is_some() && (width < 4 || width % 2 != 0) {
            return Err(Error::Config(format!("{prefix}positions as sines in rows of {width}, expected an even width from 4 on")));
        }
        let dim = width / heads.max(1);
        if heads == 0 || kv_heads == 0 || width % heads != 0 || heads % kv_heads != 0 || dim % 2 != 0 || dim > MAX_HEAD_DIM {
            let what = format!(
                "{prefix}num_heads {heads} over {prefix}kv_repeat do not divide a width of {width} into even heads up to {MAX_HEAD_DIM}"
            );
            return Err(Error::Config(what));
        }
        Ok(())
    }
}

/// The rule of `ActivationGating` in moshi's `modules/gating.py`.
pub(super) fn hidden(gating: &str, width: usize, wide: usize) -> usize {
    match gating {
        "none" => wide,
        _ if wide == width.saturating_mul(4) => width.saturating_mul(21) / 8,
        _ => wide.saturating_mul(2) / 3,
    }
}

fn norm(name: &str) -> Result<(Norm, f64)> {
    match name {
        "layer_norm" => Ok((Norm::Layer, 1e-5)),
        "layer_norm_f32" => Ok((Norm::Layer, 1e-8)),
        "rms_norm" => Ok((Norm::Rms, 1e-5)),
        "rms_norm_f32" => Ok((Norm::Rms, 1e-8)),
        _ => Err(Error::Config(format!("norm is {name:?}, expected layer_norm, rms_norm, or either with _f32"))),
    }
}

fn positions(key: &str, name: &str, period: f64, scale: f64) -> Result<(Option<Rotary>, Option<Sines>)> {
    if !(period > 0.0 && period.is_finite() && scale.is_finite()) {
        return Err(Error::Config(format!("a longest period of {period}, sines scaled by {scale}")));
    }
    let rotary = |style| Some(Rotary::new(period, style));
    let sines = Some(Sines { period, scale });
    match name {
        "rope" => Ok((rotary(Style::Interleaved), None)),
        "rope_concat" => Ok((rotary(Style::HalfSplit), None)),
        "sin" => Ok((None, sines)),
        "sin_rope" => Ok((rotary(Style::Interleaved), sines)),
        "none" => Ok((None, None)),
        _ => Err(Error::Config(format!("{key} is {name:?}, expected rope, rope_concat, sin, sin_rope or none"))),
    }
}

fn feed_forward(key: &str, gating: &str) -> Result<FeedForward> {
    Ok(match gating {
        "none" => FeedForward::Gelu,
        "silu" => FeedForward::SiluGate,
        "sigmoid" => FeedForward::Gate(Activation::Sigmoid),
        "tanh" => FeedForward::Gate(Activation::Tanh),
        "relu" => FeedForward::Gate(Activation::Relu),
        "leaky_relu" => FeedForward::Gate(Activation::LeakyRelu),
        "elu" => FeedForward::Gate(Activation::Elu),
        "gelu" => FeedForward::Gate(Activation::Gelu),
        "mish" => FeedForward::Gate(Activation::Mish),
        "softsign" => FeedForward::Gate(Activation::Softsign),
        "identity" => FeedForward::Gate(Activation::Identity),
        _ => {
            return Err(Error::Config(format!("{key} is {gating:?}, expected none, or a function that moshi has a gate of, such as silu")));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_model_has_its_published_widths() {
        let config = Config::moshi();
        config.check().unwrap();
        assert_eq!((config.hidden(), config.depth_hidden(3), config.heard(), config.sets()), (11264, 2816, 8, 8));
        assert_eq!(config.delays, [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn personaplex_is_moshi_that_draws_what_it_says_alone() {
        let published = Config::from_json(r#"{"model_type": "personaplex", "version": "7b-v1"}"#).unwrap();
        assert_eq!(published, Config { model_type: "personaplex".into(), ..Config::moshi() });
        assert!(published.full_duplex());
        let mut json = serde_json::json!({"model_type": "personaplex", "dim": 32, "num_heads": 4, "num_layers": 2, "context": 8,
            "positional_embedding": "rope", "gating": "silu", "n_q": 4, "dep_q": 4, "delays": [0, 0, 1, 0, 1], "depformer_dim": 16,
            "depformer_num_heads": 2, "depformer_weights_per_step": true, "depformer_pos_emb": "none",
            "depformer_weights_per_step_schedule": [0, 1, 2, 3], "depformer_dim_feedforward": [30, 33, 36, 39]});
        let both = Config::from_json(&json.to_string()).unwrap();
        assert_eq!((both.dep_q, both.heard(), both.sets()), (2, 2, 2));
        json["model_type"] = "moshi".into();
        assert_eq!(Config::from_json(&json.to_string()).unwrap().heard(), 0);
        json["model_type"] = "personaplex".into();
        json["dim"] = "wide".into();
        assert!(Config::from_json(&json.to_string()).is_err());
    }

    #[test]
    fn an_absent_layer_scale_is_that_of_the_temporal_transformer() {
        let parse = |text: &str| serde_json::from_str::<Config>(text).unwrap();
        assert!(parse(r#"{"layer_scale":0.1,"gating":"silu","depformer_pos_emb":"none"}"#).depth().unwrap().scaled);
        let none = parse(r#"{"layer_scale":0.1,"depformer_layer_scale":null,"gating":"silu","depformer_pos_emb":"none"}"#);
        assert!(!none.depth().unwrap().scaled);
    }

    #[test]
    fn what_is_no_such_model_is_refused() {
        let base = serde_json::json!({"dim": 32, "num_heads": 4, "num_layers": 2, "context": 8, "positional_embedding": "rope", "norm": "rms_norm",
            "gating": "silu", "n_q": 4, "dep_q": 2, "card": 16, "text_card": 20, "delays": [0, 0, 1, 0, 1], "depformer_dim": 16,
            "depformer_num_heads": 2, "depformer_weights_per_step": true, "depformer_pos_emb": "none",
            "norm_emb": true, "conditioners": {"b": {"type": "tensor", "tensor": {"dim": 4}}}});
        Config::from_json(&base.to_string()).unwrap();
        let mut crossed = base.clone();
        crossed["cross_attention"] = true.into();
        for (fuser, why) in [
            (serde_json::json!({"cross": ["b"]}), None),
            (serde_json::json!({"sum": ["b"]}), Some("no condition in cross")),
            (
                serde_json::json!({"cross": ["b"], "cross_attention_pos_emb": true, "cross_attention_pos_emb_scale": 1e7}),
                Some("scaled by 10000000"),
            ),
        ] {
            crossed["fuser"] = fuser;
            match (Config::from_json(&crossed.to_string()), why) {
                (Ok(_), None) => {}
                (found, why) => assert!(found.unwrap_err().to_string().contains(why.unwrap())),
            }
        }
        let mut muxed = base.clone();
        muxed["norm_emb"] = false.into();
        muxed["demux_second_text_stream"] = true.into();
        muxed["text_card_out"] = (21 * 22).into();
        assert_eq!(Config::from_json(&muxed.to_string()).unwrap().texts(), 21 * 22);
        for (key, value) in [("text_card_out", 21 * 22 + 1), ("text_card", 46_340)] {
            let mut muxed = muxed.clone();
            muxed[key] = value.into();
            assert!(Config::from_json(&muxed.to_string()).unwrap_err().to_string().contains(key));
        }
        crossed["fuser"] = serde_json::json!({"cross": ["b"]});
        crossed["kv_repeat"] = 2.into();
        assert!(Config::from_json(&crossed.to_string()).unwrap_err().to_string().contains("kv_repeat 2"));
        for (key, value, why) in [
            ("dim", serde_json::json!(33), "num_heads"),
            ("dim", serde_json::json!(u64::MAX), "dim is"),
            ("num_heads", serde_json::json!(0), "num_heads is 0"),
            ("kv_repeat", serde_json::json!(3), "kv_repeat"),
            ("kv_repeat", serde_json::json!(8), "kv_repeat"),
            ("num_layers", serde_json::json!(100_000), "num_layers"),
            ("context", serde_json::json!(null), "context"),
            ("delays", serde_json::json!([0, 1]), "delays"),
            ("delays", serde_json::json!([0, 0, 1u64 << 40, 0, 1]), "delays"),
            ("norm", serde_json::json!("batch_norm"), "batch_norm"),
            ("gating", serde_json::json!("swish"), "swish"),
            ("positional_embedding", serde_json::json!("alibi"), "expected rope"),
            ("depformer_pos_emb", serde_json::json!("alibi"), "depformer_pos_emb"),
            ("fuser", serde_json::json!({"cross": ["a"]}), "a is none"),
            ("fuser", serde_json::json!({"sum": ["a"]}), "a is none"),
            ("fuser", serde_json::json!({"cross": ["b"]}), "b in cross of a model without"),
            ("fuser", serde_json::json!({"prepend": ["b"]}), "b in prepend"),
            ("fuser", serde_json::json!({"sum": vec!["b"; 65]}), "more than 64"),
            ("conditioners", serde_json::json!({"a": {"type": "wav", "wav": {"dim": 4}}}), "a is of type wav"),
            ("conditioners", serde_json::json!({"a": {"type": "tensor", "tensor": {"dim": 0}}}), "dim is 0"),
            ("conditioners", serde_json::json!({"a": {"type": "tensor", "tensor": {"dim": 4, "output_bias": true}}}), "a has a bias"),
            ("conditioners", serde_json::json!({"a": {"type": "tensor"}}), "a: "),
            ("conditioners", serde_json::json!({"a": {"type": "lut", "lut": {"dim": 4, "tokenizer": "noop"}}}), "n_bins"),
            (
                "conditioners",
                serde_json::json!({"a": {"type": "lut", "lut": {"n_bins": 1, "dim": 4, "tokenizer": "noop", "possible_values": ["x", "y"]}}}),
                "n_bins is 1",
            ),
            ("conditioners", serde_json::json!({"a": {"type": "lut", "lut": {"n_bins": 4, "dim": 4, "tokenizer": "t5"}}}), "tokenizer"),
            ("hidden_scale", serde_json::json!(1e30), "feed-forward width"),
            ("depformer_gating", serde_json::json!("none"), "weights per step"),
            ("depformer_weights_per_step_schedule", serde_json::json!([0]), "schedule"),
            ("depformer_weights_per_step_schedule", serde_json::json!([0, 7]), "schedule"),
            ("depformer_weights_per_step_schedule", serde_json::json!([]), "schedule"),
            ("depformer_dim_feedforward", serde_json::json!([30, 30, 30]), "depformer_dim_feedforward"),
            ("depformer_dim_feedforward", serde_json::json!([30, 0]), "feed-forward width"),
            ("depformer_num_heads", serde_json::json!(16), "depformer_num_heads"),
            ("cross_attention", serde_json::json!(true), "no condition in cross, beside cross_attention"),
            ("conditioners", serde_json::json!({"a": 1}), "conditioners"),
            ("causal", serde_json::json!(false), "causal"),
            ("demux_second_stream", serde_json::json!(true), "norm_emb"),
            ("max_period", serde_json::json!(-1.0), "period"),
            ("dep_q", serde_json::json!(5), "dep_q"),
        ] {
            let mut config = base.clone();
            config[key] = value;
            let error = Config::from_json(&config.to_string()).unwrap_err().to_string();
            assert!(error.contains(why), "{key}: {error}");
        }
    }
}
