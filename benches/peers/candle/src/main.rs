//! Milliseconds of each step of a language model of Moshi's shape, of random weights, in candle: a line of JSON each.
//!
//!     RAYON_NUM_THREADS=2 swara-peer-candle f32|q8_0 CONTEXT STEPS WARMUP
//!
//! candle multiplies no bf16 on the CPU. In q8_0 every matrix goes through a GGUF in memory, as the crate loads them.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use candle_transformers::generation::{LogitsProcessor, Sampling};
use candle_transformers::quantized_var_builder::VarBuilder as QuantizedVarBuilder;
use moshi::candle::quantized::{GgmlDType, QTensor, gguf_file};
use moshi::candle::{DType, Device, Result, Shape, Tensor, bail};
use moshi::candle_nn::var_builder::SimpleBackend;
use moshi::candle_nn::{Init, VarBuilder};
use moshi::lm::LmModel;
use moshi::nn::MaybeQuantizedVarBuilder as Weights;
use moshi::{lm, lm_generate_multistream as generate, transformer};

/// Draws tensors when a model asks for them, and keeps them by name.
#[derive(Clone, Default)]
struct Random(Arc<Mutex<BTreeMap<String, Tensor>>>);

impl SimpleBackend for Random {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = match *shape.dims() {
            [_, columns] => {
                let bound = (3.0 / columns as f32).sqrt();
                Tensor::rand(-bound, bound, shape, device)?
            }
            _ => Tensor::ones(shape, dtype, device)?,
        };
        self.0.lock().unwrap().insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// The published model, but a temporal transformer of 24 layers of 1024.
fn config(context: usize) -> lm::Config {
    let published = lm::Config::v0_1_streaming(8);
    let narrow = transformer::Config { d_model: 1024, num_heads: 16, num_layers: 24, dim_feedforward: 4 * 1024, ..published.transformer };
    lm::Config { transformer: transformer::Config { context, ..narrow }, ..published }
}

fn gguf(tensors: BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    let quantized = tensors.into_iter().map(|(name, tensor)| {
        let dtype = if tensor.rank() == 2 { GgmlDType::Q8_0 } else { GgmlDType::F32 };
        Ok((name, QTensor::quantize(&tensor, dtype)?))
    });
    let quantized: Vec<(String, QTensor)> = quantized.collect::<Result<_>>()?;
    let mut file = Cursor::new(Vec::new());
    gguf_file::write(&mut file, &[], &quantized.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect::<Vec<_>>())?;
    Ok(file.into_inner())
}

fn model(format: &str, config: &lm::Config) -> Result<LmModel> {
    let random = Random::default();
    let weights = VarBuilder::from_backend(Box::new(random.clone()), DType::F32, Device::Cpu);
    let model = LmModel::new(config, Weights::Real(weights))?;
    let drawn = std::mem::take(&mut *random.0.lock().unwrap());
    match format {
        "f32" => Ok(model),
        "q8_0" => {
            drop(model);
            LmModel::new(config, Weights::Quantized(QuantizedVarBuilder::from_gguf_buffer(&gguf(drawn)?, &Device::Cpu)?))
        }
        _ => bail!("{format} is neither f32 nor q8_0"),
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [format, numbers @ ..] = arguments.as_slice() else { bail!("expected f32|q8_0 CONTEXT STEPS WARMUP") };
    let numbers = numbers.iter().map(|text| text.parse().map_err(|_| moshi::candle::Error::Msg(format!("{text} is no count"))));
    let &[context, steps, warmup] = numbers.collect::<Result<Vec<usize>>>()?.as_slice() else { bail!("expected CONTEXT STEPS WARMUP") };

    let drawing = |k, temperature| LogitsProcessor::from_sampling(0, Sampling::TopK { k, temperature });
    let delays = generate::Config { acoustic_delay: 1, ..generate::Config::v0_1() };
    let (mut text, heard, card) = (delays.text_start_token, delays.input_audio_codebooks, delays.audio_pad_token() as usize);
    let model = model(format, &config(context))?;
    let mut state = generate::State::new(model, warmup + steps + 1, drawing(250, 0.8), drawing(25, 0.7), None, None, None, delays);
    for step in 0..warmup + steps {
        let codes: Vec<u32> = (0..heard).map(|i| ((step * 31 + i * 17) % card) as u32).collect();
        let start = Instant::now();
        text = state.step(text, &codes, None, None)?;
        if step >= warmup {
            println!(r#"{{"ms": {}}}"#, start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(())
}
