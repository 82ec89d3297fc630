//! A pickle machine that builds tensors and plain values, and nothing else.
//!
//! A pickle is a program for a stack machine; Python's runs whatever function it names. This one knows the few functions
//! that a state dict needs, by name, and has no others: a pickle that names any other is refused there. A few classes that
//! published files carry beside their weights are *inert*: read over, their contents dropped.
//!
//! Protocols 2 to 5, as `torch.save` writes them. Memory is bounded by [`MAX_STEPS`] and by the length of the pickle: every
//! step makes at most one value, and strings stay where they are.

use std::collections::BTreeMap;

use super::globals::{self, Global};
use crate::weights::Dtype;
use crate::{TorchError, WeightsError};

/// Instructions in a pickle: a tensor takes about thirty.
pub(super) const MAX_STEPS: usize = 1 << 21;
/// PyTorch allows 64, of which no layer uses more than 5.
const MAX_DIMENSIONS: usize = 8;

#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'p> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(&'p str),
    Global(Global),
    /// Index into [`Heap`].
    Object(usize),
    /// Something that is carried along and means nothing here.
    Inert,
}

#[derive(Debug)]
pub(super) enum Object<'p> {
    /// Lists and tuples.
    List(Vec<Value<'p>>),
    Dict(Vec<(Value<'p>, Value<'p>)>),
    Storage(Storage<'p>),
    Tensor(Box<Tensor<'p>>),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Storage<'p> {
    pub key: &'p str,
    /// None: untyped, counted in bytes.
    pub dtype: Option<Dtype>,
    pub elements: u64,
}

#[derive(Debug)]
pub(super) struct Tensor<'p> {
    pub storage: Storage<'p>,
    pub dtype: Dtype,
    /// In elements, as the strides.
    pub offset: u64,
    pub shape: Vec<u64>,
    pub stride: Vec<u64>,
}

#[derive(Debug)]
pub(super) struct Heap<'p> {
    pub objects: Vec<Object<'p>>,
    pub root: Value<'p>,
}

impl<'p> Heap<'p> {
    pub fn object(&self, value: Value<'p>) -> Option<&Object<'p>> {
        match value {
            Value::Object(at) => self.objects.get(at),
            _ => None,
        }
    }

    pub fn list(&self, value: Value<'p>) -> Option<&[Value<'p>]> {
        match self.object(value)? {
            Object::List(items) => Some(items),
            _ => None,
        }
    }

    pub fn dict(&self, value: Value<'p>) -> Option<&[(Value<'p>, Value<'p>)]> {
        match self.object(value)? {
            Object::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }
}

/// Runs the pickle that begins at `start` in `bytes`; returns it with the place where it ends.
pub(super) fn run(bytes: &[u8], start: usize) -> Result<(Heap<'_>, usize), WeightsError> {
    let mut machine = Machine { bytes, at: start, stack: Vec::new(), marks: Vec::new(), memo: BTreeMap::new(), objects: Vec::new() };
    for _ in 0..MAX_STEPS {
        let at = machine.at;
        let done = machine.step().map_err(|why| match why {
            Stop::Why(why) => TorchError::Pickle { at: at as u64, why: why.into() },
            Stop::Refused(name) => TorchError::Refused(name),
        })?;
        if let Some(root) = done {
            return Ok((Heap { objects: machine.objects, root }, machine.at));
        }
    }
    Err(TorchError::Pickle { at: machine.at as u64, why: format!("more than {MAX_STEPS} instructions") }.into())
}

enum Stop {
    Why(&'static str),
    /// The name of the function or class.
    Refused(String),
}

impl From<&'static str> for Stop {
    fn from(why: &'static str) -> Self {
        Self::Why(why)
    }
}

type Step<T = ()> = Result<T, Stop>;

struct Machine<'p> {
    bytes: &'p [u8],
    at: usize,
    stack: Vec<Value<'p>>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Value<'p>>,
    objects: Vec<Object<'p>>,
}

impl<'p> Machine<'p> {
    /// One instruction; the root, at the last.
    fn step(&mut self) -> Step<Option<Value<'p>>> {
        match self.take::<1>()?[0] {
            b'.' => return self.pop().map(Some),
            0x80 => match self.take::<1>()? {
                [2..=5] => {}
                _ => return Err("a protocol other than 2 to 5".into()),
            },
            // Frames only help readers that buffer.
            0x95 => drop(self.take::<8>()?),

            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'K' => self.int(|m| Ok(i64::from(m.take::<1>()?[0])))?,
            b'M' => self.int(|m| Ok(i64::from(u16::from_le_bytes(m.take()?))))?,
            b'J' => self.int(|m| Ok(i64::from(i32::from_le_bytes(m.take()?))))?,
            0x8a => self.long(|m| m.len1())?,
            0x8b => self.long(|m| m.len4())?,
            b'G' => {
                let value = f64::from_be_bytes(self.take()?);
                self.stack.push(Value::Float(value));
            }
            b'X' => self.text(|m| m.len4())?,
            0x8c => self.text(|m| m.len1())?,
            0x8d => self.text(|m| m.len8())?,
            // Strings of Python 2, which may be bytes.
            b'T' => self.string(|m| m.len4())?,
            b'U' => self.string(|m| m.len1())?,
            b'B' => self.skip(|m| m.len4())?,
            b'C' => self.skip(|m| m.len1())?,
            0x8e | 0x96 => self.skip(|m| m.len8())?,

            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'q' => {
                let slot = u32::from(self.take::<1>()?[0]);
                self.put(slot)?;
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.take()?);
                self.put(slot)?;
            }
            0x94 => self.put(self.memo.len() as u32)?,
            b'h' => {
                let slot = u32::from(self.take::<1>()?[0]);
                self.get(slot)?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.take()?);
                self.get(slot)?;
            }

            b'}' => self.make(Object::Dict(Vec::new())),
            b']' | b')' => self.make(Object::List(Vec::new())),
            0x8f => self.stack.push(Value::Inert),
            b't' => {
                let items = self.pop_mark()?;
                self.make(Object::List(items));
            }
            0x91 => {
                self.pop_mark()?;
                self.stack.push(Value::Inert);
            }
            n @ 0x85..=0x87 => {
                let n = usize::from(n - 0x84);
                let floor = self.stack.len().checked_sub(n).filter(|&floor| floor >= self.floor());
                let items = self.stack.split_off(floor.ok_or("the stack is empty")?);
                self.make(Object::List(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(items)?;
            }

            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.global(module, name)?;
            }
            0x93 => {
                let (Value::Str(name), Value::Str(module)) = (self.pop()?, self.pop()?) else {
                    return Err("a class or function without a name".into());
                };
                self.global(module, name)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.persistent(id)?;
                self.make(Object::Storage(storage));
            }
            b'R' | 0x81 => {
                let args = self.pop()?;
                let function = self.pop()?;
                self.call(function, args)?;
            }
            0x92 => {
                let (_keywords, args) = (self.pop()?, self.pop()?);
                let function = self.pop()?;
                self.call(function, args)?;
            }
            // The attributes of an object, such as the versions in a state dict's `_metadata`.
            b'b' => {
                self.pop()?;
                if !matches!(self.target()?, None | Some(Object::Dict(_))) {
                    return Err("attributes for something that has none".into());
                }
            }
            _ => return Err("an instruction that no state dict needs".into()),
        }
        Ok(None)
    }

    fn take<const N: usize>(&mut self) -> Step<[u8; N]> {
        let found = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>()).ok_or("the pickle ends early")?;
        self.at += N;
        Ok(*found)
    }

    fn slice(&mut self, len: usize) -> Step<&'p [u8]> {
        let end = self.at.checked_add(len).ok_or("a length beyond the pickle")?;
        let found = self.bytes.get(self.at..end).ok_or("a length beyond the pickle")?;
        self.at = end;
        Ok(found)
    }

    fn len1(&mut self) -> Step<usize> {
        Ok(usize::from(self.take::<1>()?[0]))
    }

    fn len4(&mut self) -> Step<usize> {
        Ok(u32::from_le_bytes(self.take()?) as usize)
    }

    fn len8(&mut self) -> Step<usize> {
        usize::try_from(u64::from_le_bytes(self.take()?)).map_err(|_| "a length beyond the pickle".into())
    }

    /// Of a module or a name: short, plain text.
    fn line(&mut self) -> Step<&'p str> {
        const LONGEST: usize = 256;
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(LONGEST).position(|&b| b == b'\n').ok_or("a name without an end")?;
        self.at += end + 1;
        str::from_utf8(&rest[..end]).map_err(|_| "a name that is not UTF-8".into())
    }

    fn int(&mut self, read: impl Fn(&mut Self) -> Step<i64>) -> Step {
        let value = read(self)?;
        self.stack.push(Value::Int(value));
        Ok(())
    }

    fn long(&mut self, len: impl Fn(&mut Self) -> Step<usize>) -> Step {
        let len = len(self)?;
        let bytes = self.slice(len)?;
        let negative = bytes.last().is_some_and(|&b| b >= 0x80);
        let mut value = [if negative { 0xff } else { 0 }; 8];
        self.stack.push(match value.get_mut(..len) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(value))
            }
            None => Value::Inert,
        });
        Ok(())
    }

    fn text(&mut self, len: impl Fn(&mut Self) -> Step<usize>) -> Step {
        let len = len(self)?;
        let text = str::from_utf8(self.slice(len)?).map_err(|_| "text that is not UTF-8")?;
        self.stack.push(Value::Str(text));
        Ok(())
    }

    fn string(&mut self, len: impl Fn(&mut Self) -> Step<usize>) -> Step {
        let len = len(self)?;
        let bytes = self.slice(len)?;
        self.stack.push(str::from_utf8(bytes).map_or(Value::Inert, Value::Str));
        Ok(())
    }

    fn skip(&mut self, len: impl Fn(&mut Self) -> Step<usize>) -> Step {
        let len = len(self)?;
        self.slice(len)?;
        self.stack.push(Value::Inert);
        Ok(())
    }

    /// What is below the last mark is out of reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Step<Value<'p>> {
        match self.stack.len() > self.floor() {
            true => self.stack.pop().ok_or("the stack is empty".into()),
            false => Err("the stack is empty".into()),
        }
    }

    fn top(&self) -> Step<Value<'p>> {
        match self.stack.len() > self.floor() {
            true => self.stack.last().copied().ok_or("the stack is empty".into()),
            false => Err("the stack is empty".into()),
        }
    }

    fn pop_mark(&mut self) -> Step<Vec<Value<'p>>> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    fn put(&mut self, slot: u32) -> Step {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn get(&mut self, slot: u32) -> Step {
        let value = *self.memo.get(&slot).ok_or("a reference to nothing")?;
        self.stack.push(value);
        Ok(())
    }

    fn make(&mut self, object: Object<'p>) {
        self.stack.push(Value::Object(self.objects.len()));
        self.objects.push(object);
    }

    fn append(&mut self, items: Vec<Value<'p>>) -> Step {
        match self.target()? {
            None => Ok(()),
            Some(Object::List(list)) => {
                list.extend(items);
                Ok(())
            }
            Some(_) => Err("an item for something that is no list".into()),
        }
    }

    fn set(&mut self, items: Vec<Value<'p>>) -> Step {
        let (pairs, rest) = items.as_chunks::<2>();
        match self.target()? {
            _ if !rest.is_empty() => Err("a key without a value".into()),
            None => Ok(()),
            Some(Object::Dict(dict)) => {
                dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            Some(_) => Err("a key for something that is no dict".into()),
        }
    }

    /// The object on top of the stack; None if it is inert.
    fn target(&mut self) -> Step<Option<&mut Object<'p>>> {
        match self.top()? {
            Value::Inert => Ok(None),
            Value::Object(at) => self.objects.get_mut(at).map(Some).ok_or("an object that is not there".into()),
            _ => Err("contents for something that has none".into()),
        }
    }

    fn list(&self, value: Value) -> Step<&[Value<'p>]> {
        match value {
            Value::Object(at) => match self.objects.get(at) {
                Some(Object::List(items)) => Ok(items),
                _ => Err("an argument that is no tuple".into()),
            },
            _ => Err("an argument that is no tuple".into()),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Step {
        let global = globals::find(module, name).ok_or_else(|| Stop::Refused(format!("{module}.{name}").chars().take(200).collect()))?;
        self.stack.push(match global {
            Global::Inert => Value::Inert,
            global => Value::Global(global),
        });
        Ok(())
    }

    /// `("storage", type, key, device, elements)`; before PyTorch 1.6 with a sixth that was last used in 0.4.
    fn persistent(&self, id: Value) -> Step<Storage<'p>> {
        match *self.list(id)? {
            [Value::Str("storage"), Value::Global(Global::Storage(dtype)), Value::Str(key), _, Value::Int(n), ref view @ ..]
                if matches!(view, [] | [Value::None]) =>
            {
                let elements = u64::try_from(n).map_err(|_| "a storage of negative size")?;
                Ok(Storage { key, dtype, elements })
            }
            _ => Err("a reference that is no storage".into()),
        }
    }

    fn call(&mut self, function: Value<'p>, args: Value<'p>) -> Step {
        let function = match function {
            Value::Inert => {
                self.stack.push(Value::Inert);
                return Ok(());
            }
            Value::Global(global) => global,
            _ => return Err("a call of something that is no function".into()),
        };
        let args = self.list(args)?;
        match function {
            Global::OrderedDict if args.is_empty() => self.make(Object::Dict(Vec::new())),
            Global::Tensor(version) => {
                let tensor = self.tensor(version, args)?;
                self.make(Object::Tensor(Box::new(tensor)));
            }
            Global::Size => {
                let size = *args.first().ok_or("too few arguments")?;
                self.list(size)?;
                self.stack.push(size);
            }
            Global::Parameter => {
                let tensor = *args.first().ok_or("too few arguments")?;
                self.is_tensor(tensor)?;
                self.stack.push(tensor);
            }
            // (function, class, its arguments, attributes)
            Global::TensorSubclass => match *args {
                [Value::Global(Global::Tensor(version)), _, args, _] => {
                    let tensor = self.tensor(version, self.list(args)?)?;
                    self.make(Object::Tensor(Box::new(tensor)));
                }
                _ => return Err("a tensor of an unknown kind".into()),
            },
            _ => return Err("a call of something that is no function".into()),
        }
        Ok(())
    }

    fn is_tensor(&self, value: Value) -> Step {
        match value {
            Value::Object(at) if matches!(self.objects.get(at), Some(Object::Tensor(_))) => Ok(()),
            _ => Err("a parameter that is no tensor".into()),
        }
    }

    /// `(storage, offset, shape, stride)` and, from version 2, what only autograd needs; in version 3 then the dtype.
    fn tensor(&self, version: u8, args: &[Value<'p>]) -> Step<Tensor<'p>> {
        let [Value::Object(storage), Value::Int(offset), shape, stride, ref rest @ ..] = *args else {
            return Err("a tensor without storage, offset, shape and strides".into());
        };
        let Some(&Object::Storage(storage)) = self.objects.get(storage) else {
            return Err("a tensor without a storage".into());
        };
        let dtype = match (version, storage.dtype, rest) {
            (3, None, [_, _, Value::Global(Global::Dtype(dtype)), ..]) => *dtype,
            (1 | 2, Some(dtype), _) => dtype,
            _ => return Err("a tensor of unknown dtype".into()),
        };
        let sizes = |list| -> Step<Vec<u64>> {
            let list = self.list(list)?;
            if list.len() > MAX_DIMENSIONS {
                return Err("a tensor of more than 8 dimensions".into());
            }
            let size = |v: &Value| match *v {
                Value::Int(n) => u64::try_from(n).map_err(|_| Stop::Why("a negative size or stride")),
                _ => Err("a size or stride that is no number".into()),
            };
            list.iter().map(size).collect()
        };
        let (shape, stride) = (sizes(shape)?, sizes(stride)?);
        if shape.len() != stride.len() {
            return Err("a tensor with more or fewer strides than dimensions".into());
        }
        let offset = u64::try_from(offset).map_err(|_| "a negative offset")?;
        Ok(Tensor { storage, dtype, offset, shape, stride })
    }
}
