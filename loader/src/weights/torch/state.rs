//! The state dict in what was saved, and what was saved beside it.

use std::collections::BTreeMap;

use serde_json::{Map, Number};

use super::pickle::{Heap, Object, Value};
use crate::{TorchError, WeightsError};

#[derive(Debug, Default)]
pub(super) struct State {
    /// Name and object.
    pub tensors: Vec<(String, usize)>,
    /// Text as it is, all else as JSON. What JSON cannot say is left out, and what is too long.
    pub metadata: BTreeMap<String, String>,
}

/// Where projects keep the state dict, if it is not what they saved.
const WRAPPERS: [&str; 6] = ["state_dict", "best_state", "fsdp_best_state", "model", "model_state", "model_state_dict"];
/// Bytes of names, together.
const MAX_NAMES: usize = 16 << 20;
/// Bytes of metadata, together; and items of a list in it, since some files carry the losses of every step.
const MAX_METADATA: usize = 1 << 20;
const MAX_ITEMS: usize = 1024;
/// Dicts in dicts.
const MAX_DEPTH: usize = 16;

/// A dict of tensors; or one within an entry that [`WRAPPERS`] names; or dicts of tensors within a dict, their names joined
/// with dots.
pub(super) fn find(heap: &Heap) -> Result<State, WeightsError> {
    let mut metadata = BTreeMap::new();
    let mut text = Budget { heap, left: MAX_METADATA };
    let mut root = heap.root;
    for _ in 0..MAX_DEPTH {
        let Some(pairs) = heap.dict(root) else { break };
        let wrapped = match pairs.iter().any(|(_, value)| is_tensor(heap, *value)) {
            true => None,
            false => WRAPPERS.iter().find_map(|name| {
                let holds = |(key, value): &&(Value, Value)| is_named(*key, name) && heap.dict(*value).is_some_and(|d| !d.is_empty());
                pairs.iter().find(holds).map(|(_, inner)| (*name, *inner))
            }),
        };
        for (key, value) in pairs {
            let Value::Str(key) = *key else { continue };
            if wrapped.is_some_and(|(name, _)| name == key) || metadata.contains_key(key) || !text.spend(key.len()) {
                continue;
            }
            let value = match *value {
                Value::Str(value) => text.spend(value.len()).then(|| value.to_owned()),
                value => text.json(value, 0).map(|json| json.to_string()),
            };
            metadata.extend(value.map(|value| (key.to_owned(), value)));
        }
        let Some((_, inner)) = wrapped else { break };
        root = inner;
    }
    let mut tensors = Vec::new();
    Budget { heap, left: MAX_NAMES }.collect("", root, 0, &mut tensors)?;
    match tensors.is_empty() {
        true => Err(TorchError::NoTensors(describe(heap)).into()),
        false => Ok(State { tensors, metadata }),
    }
}

fn is_tensor(heap: &Heap, value: Value) -> bool {
    matches!(heap.object(value), Some(Object::Tensor(_)))
}

fn is_named(key: Value, name: &str) -> bool {
    matches!(key, Value::Str(key) if key == name)
}

/// Values share their parts, so that what is small in the file may be huge when written out.
struct Budget<'h, 'p> {
    heap: &'h Heap<'p>,
    left: usize,
}

impl Budget<'_, '_> {
    /// False when nothing is left, then and ever after.
    fn spend(&mut self, len: usize) -> bool {
        let left = self.left.checked_sub(len.saturating_add(16));
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    fn json(&mut self, value: Value, depth: usize) -> Option<serde_json::Value> {
        let len = if let Value::Str(text) = value { text.len() } else { 0 };
        if depth > MAX_DEPTH || !self.spend(len) {
            return None;
        }
        Some(match value {
            Value::None => serde_json::Value::Null,
            Value::Bool(value) => value.into(),
            Value::Int(value) => value.into(),
            Value::Float(value) => Number::from_f64(value)?.into(),
            Value::Str(value) => value.into(),
            Value::Object(_) => match self.heap.object(value)? {
                Object::List(items) if items.len() > MAX_ITEMS => return None,
                Object::List(items) => items.iter().map(|&item| self.json(item, depth + 1)).collect::<Option<Vec<_>>>()?.into(),
                Object::Dict(pairs) => {
                    let mut map = Map::new();
                    for (key, value) in pairs {
                        if let (Some(key), Some(value)) = (self.key(*key), self.json(*value, depth + 1)) {
                            map.insert(key, value);
                        }
                    }
                    if map.is_empty() && !pairs.is_empty() {
                        return None;
                    }
                    map.into()
                }
                Object::Storage(_) | Object::Tensor(_) => return None,
            },
            Value::Global(_) | Value::Inert => return None,
        })
    }

    fn key(&mut self, key: Value) -> Option<String> {
        match key {
            Value::Str(key) => self.spend(key.len()).then(|| key.to_owned()),
            Value::Int(key) => self.spend(0).then(|| key.to_string()),
            _ => None,
        }
    }

    /// The tensors of `dict`; if it has none, those of the dicts in it.
    fn collect(&mut self, prefix: &str, dict: Value, depth: usize, found: &mut Vec<(String, usize)>) -> Result<(), WeightsError> {
        let Some(pairs) = self.heap.dict(dict).filter(|_| depth < MAX_DEPTH) else { return Ok(()) };
        let flat = pairs.iter().any(|(_, value)| is_tensor(self.heap, *value));
        for (key, value) in pairs {
            let tensor = is_tensor(self.heap, *value);
            if tensor != flat {
                continue;
            }
            let key = match self.key(*key) {
                Some(key) if self.spend(prefix.len()) => key,
                None if !tensor && self.left > 0 => continue,
                _ => return Err(TorchError::Names.into()),
            };
            match (tensor, *value) {
                (true, Value::Object(at)) => found.push((format!("{prefix}{key}"), at)),
                _ => self.collect(&format!("{prefix}{key}."), *value, depth + 1, found)?,
            }
        }
        Ok(())
    }
}

/// What was saved instead of tensors.
fn describe(heap: &Heap) -> String {
    const LISTED: usize = 8;
    match heap.dict(heap.root) {
        Some(pairs) => {
            let keys = pairs.iter().filter_map(|(key, _)| match *key {
                Value::Str(key) => Some(key.chars().take(40).collect::<String>()),
                _ => None,
            });
            format!("a dict of {} entries: {}", pairs.len(), keys.take(LISTED).collect::<Vec<_>>().join(", "))
        }
        None if is_tensor(heap, heap.root) => "a tensor without a name".into(),
        None if heap.list(heap.root).is_some() => "a list".into(),
        None => "a single value".into(),
    }
}
