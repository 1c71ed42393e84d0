//! A pickle reader that can build nothing but tensors.
//!
//! A pickle is a program whose `GLOBAL` and `REDUCE` opcodes call any function
//! by name. This reader admits three names - `collections.OrderedDict`,
//! `torch._utils._rebuild_tensor_v2`, `torch._utils._rebuild_parameter` - and
//! the storage classes, and refuses every other before anything is built from
//! it. Values are indices into one list, so that a hostile nesting costs no
//! more memory than its own bytes and needs no recursion.

use std::collections::HashMap;
use std::rc::Rc;

/// A tensor as the pickle describes it: a strided view of a storage.
#[derive(Clone, Debug, PartialEq)]
pub struct PickledTensor {
    /// Storage class, e.g. `FloatStorage`.
    pub storage: Rc<str>,
    /// Name of the storage's file under `data/` in the archive.
    pub key: Rc<str>,
    /// First element in the storage.
    pub offset: usize,
    /// Axes.
    pub shape: Vec<usize>,
    /// Elements from one index to the next, per axis.
    pub stride: Vec<usize>,
}

type Id = usize;

/// More axes than any weight has.
const MAX_AXES: usize = 8;

#[derive(Clone, Debug)]
enum Node {
    None,
    Bool,
    Int(i64),
    Float,
    Text(Rc<str>),
    Global(Global),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Storage { class: Rc<str>, key: Rc<str> },
    Tensor(Rc<PickledTensor>),
}

#[derive(Clone, Debug)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Rc<str>),
}

/// Reads a state dictionary: name and tensor, in the file's order.
pub fn read_state_dict(bytes: &[u8]) -> Result<Vec<(String, PickledTensor)>, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = machine.run()?;
    let Node::Dict(items) = &machine.nodes[root] else {
        return Err(
            "it holds no dictionary of tensors at the top; save `model.state_dict()`".into()
        );
    };
    items
        .iter()
        .map(|&(key, value)| match (&machine.nodes[key], &machine.nodes[value]) {
            (Node::Text(name), Node::Tensor(tensor)) => Ok((name.to_string(), PickledTensor::clone(tensor))),
            (Node::Text(name), _) => Err(format!(
                "entry `{name}` is not a tensor; save `model.state_dict()`, not a training checkpoint"
            )),
            _ => Err("a key of its dictionary is not text".into()),
        })
        .collect()
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

const DAMAGED: &str = "the pickle is damaged";

impl Machine<'_> {
    fn take(&mut self, len: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(len).ok_or(DAMAGED)?;
        let slice = self.bytes.get(self.at..end).ok_or("the pickle ends too early")?;
        self.at = end;
        Ok(slice)
    }

    fn unsigned(&mut self, len: usize) -> Result<u64, String> {
        let mut word = [0; 8];
        word[..len].copy_from_slice(self.take(len)?);
        Ok(u64::from_le_bytes(word))
    }

    fn text(&mut self, len: u64) -> Result<String, String> {
        let bytes = self.take(usize::try_from(len).map_err(|_| DAMAGED)?)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "a text of the pickle is not UTF-8".into())
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|&b| b == b'\n').ok_or("the pickle ends too early")?;
        let text = self.text(len as u64)?;
        self.at += 1;
        Ok(text)
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(DAMAGED.into());
        }
        Ok(self.stack.pop().expect("higher than the floor"))
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| DAMAGED.into())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or(DAMAGED)?;
        Ok(self.stack.split_off(mark))
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), String> {
        let global = match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", class) if class.ends_with("Storage") => Global::Storage(class.into()),
            _ => {
                return Err(format!(
                    "its pickle asks for `{module}.{name}`, which is not a tensor; nothing of it \
                     was run. Convert the file to safetensors where you trust it"
                ));
            }
        };
        self.push(Node::Global(global));
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), String> {
        let target = self.top()?;
        if !items.len().is_multiple_of(2) {
            return Err(DAMAGED.into());
        }
        let pairs = items.chunks_exact(2).map(|p| (p[0], p[1]));
        match &mut self.nodes[target] {
            Node::Dict(entries) => entries.extend(pairs),
            _ => return Err(DAMAGED.into()),
        }
        Ok(())
    }

    fn append(&mut self, items: &[Id]) -> Result<(), String> {
        let target = self.top()?;
        match &mut self.nodes[target] {
            Node::List(entries) => entries.extend(items),
            _ => return Err(DAMAGED.into()),
        }
        Ok(())
    }

    fn memoize(&mut self, key: u32) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let id = *self.memo.get(&key).ok_or(DAMAGED)?;
        self.stack.push(id);
        Ok(())
    }

    fn run(&mut self) -> Result<Id, String> {
        loop {
            let op = self.take(1)?[0];
            match op {
                0x80 => {
                    let protocol = self.take(1)?[0];
                    if !(2..=5).contains(&protocol) {
                        return Err(format!("pickle protocol {protocol} is not read"));
                    }
                }
                0x95 => drop(self.take(8)?), // FRAME
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'N' => self.push(Node::None),
                0x88 | 0x89 => self.push(Node::Bool),
                b'K' => {
                    let v = self.unsigned(1)?;
                    self.push(Node::Int(v as i64));
                }
                b'M' => {
                    let v = self.unsigned(2)?;
                    self.push(Node::Int(v as i64));
                }
                b'J' => {
                    let v = self.unsigned(4)? as u32 as i32;
                    self.push(Node::Int(v.into()));
                }
                0x8a => {
                    // LONG1: two's complement, little-endian, of any length.
                    let len = self.take(1)?[0] as usize;
                    if len > 8 {
                        return Err("a number of the pickle is too large".into());
                    }
                    let v = self.unsigned(len)?;
                    let unused = 64 - 8 * len as u32;
                    let v = if len == 0 { 0 } else { ((v << unused) as i64) >> unused };
                    self.push(Node::Int(v));
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Node::Float);
                }
                b'X' => {
                    let len = self.unsigned(4)?;
                    let text = self.text(len)?;
                    self.push(Node::Text(text.into()));
                }
                0x8c => {
                    let len = self.unsigned(1)?;
                    let text = self.text(len)?;
                    self.push(Node::Text(text.into()));
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (module, name) = match (&self.nodes[module], &self.nodes[name]) {
                        (Node::Text(module), Node::Text(name)) => (module.clone(), name.clone()),
                        _ => return Err(DAMAGED.into()),
                    };
                    self.global(&module, &name)?;
                }
                b')' => self.push(Node::Tuple(Vec::new())),
                0x85..=0x87 => {
                    let mut items = Vec::new();
                    for _ in 0..op - 0x84 {
                        items.insert(0, self.pop()?);
                    }
                    self.push(Node::Tuple(items));
                }
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::Tuple(items));
                }
                b']' => self.push(Node::List(Vec::new())),
                b'a' => {
                    let item = self.pop()?;
                    self.append(&[item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(&items)?;
                }
                b'}' => self.push(Node::Dict(Vec::new())),
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(&items)?;
                }
                b'q' => {
                    let key = self.unsigned(1)?;
                    self.memoize(key as u32)?;
                }
                b'r' => {
                    let key = self.unsigned(4)?;
                    self.memoize(key as u32)?;
                }
                0x94 => self.memoize(self.memo.len() as u32)?,
                b'h' => {
                    let key = self.unsigned(1)?;
                    self.recall(key as u32)?;
                }
                b'j' => {
                    let key = self.unsigned(4)?;
                    self.recall(key as u32)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    let node = self.storage(id)?;
                    self.push(node);
                }
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    let node = self.reduce(function, arguments)?;
                    self.push(node);
                }
                // BUILD gives the state dictionary its `_metadata`, which holds
                // version numbers of modules and no weights.
                b'b' => {
                    self.pop()?;
                    if !matches!(self.nodes[self.top()?], Node::Dict(_)) {
                        return Err(
                            "its pickle sets the state of an object; only tensors are read".into(),
                        );
                    }
                }
                other => {
                    return Err(format!(
                        "its pickle holds the instruction 0x{other:02x}, which tensors do not need"
                    ));
                }
            }
        }
    }

    fn tuple(&self, id: Id) -> Result<Vec<&Node>, String> {
        match &self.nodes[id] {
            Node::Tuple(items) => Ok(items.iter().map(|&i| &self.nodes[i]).collect()),
            _ => Err(DAMAGED.into()),
        }
    }

    /// A persistent id: `("storage", class, key, location, elements)`.
    fn storage(&self, id: Id) -> Result<Node, String> {
        match self.tuple(id)?[..] {
            [Node::Text(kind), Node::Global(Global::Storage(class)), Node::Text(key), _, _]
                if **kind == *"storage" =>
            {
                Ok(Node::Storage { class: class.clone(), key: key.clone() })
            }
            _ => Err("its pickle refers to something that is not a tensor's storage".into()),
        }
    }

    fn reduce(&self, function: Id, arguments: Id) -> Result<Node, String> {
        let Node::Global(global) = &self.nodes[function] else { return Err(DAMAGED.into()) };
        let arguments = self.tuple(arguments)?;
        match (global, &arguments[..]) {
            (Global::OrderedDict, []) => Ok(Node::Dict(Vec::new())),
            // storage, offset, shape, stride, requires_grad, backward hooks
            (
                Global::RebuildTensor,
                [
                    Node::Storage { class, key },
                    Node::Int(offset),
                    Node::Tuple(shape),
                    Node::Tuple(stride),
                    ..,
                ],
            ) => {
                let (shape, stride) = (self.sizes(shape)?, self.sizes(stride)?);
                if shape.len() != stride.len() || shape.len() > MAX_AXES {
                    return Err(DAMAGED.into());
                }
                Ok(Node::Tensor(Rc::new(PickledTensor {
                    storage: class.clone(),
                    key: key.clone(),
                    offset: usize::try_from(*offset).map_err(|_| DAMAGED)?,
                    shape,
                    stride,
                })))
            }
            (Global::RebuildParameter, [Node::Tensor(tensor), ..]) => {
                Ok(Node::Tensor(tensor.clone()))
            }
            _ => Err("its pickle calls a function in a way tensors do not need".into()),
        }
    }

    fn sizes(&self, ids: &[Id]) -> Result<Vec<usize>, String> {
        ids.iter()
            .map(|&id| match self.nodes[id] {
                Node::Int(v) => usize::try_from(v).map_err(|_| DAMAGED.to_string()),
                _ => Err(DAMAGED.to_string()),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `os.system("true")`, as `pickle.dumps` writes it.
    #[test]
    fn a_pickle_that_calls_a_function_is_refused_by_name() {
        let error = read_state_dict(
            b"\x80\x02cposix\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03.",
        )
        .unwrap_err();
        assert!(error.contains("posix.system"), "{error}");
        let error =
            read_state_dict(b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.").unwrap_err();
        assert!(error.contains("posix.system"), "{error}");
    }

    #[test]
    fn deep_nesting_and_shared_values_stay_small() {
        // 100,000 nested tuples; then a list doubled 60 times by reference.
        let mut deep = b"\x80\x02)".to_vec();
        deep.extend(std::iter::repeat_n(0x85, 100_000));
        deep.push(b'.');
        assert!(read_state_dict(&deep).is_err());
        let mut doubled = b"\x80\x02)q\x00".to_vec();
        for _ in 0..60 {
            doubled.extend(b"h\x00h\x00\x86q\x00");
        }
        doubled.push(b'.');
        assert!(read_state_dict(&doubled).is_err());
    }

    #[test]
    fn every_truncation_of_a_pickle_is_an_error() {
        let whole = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.";
        for end in 0..whole.len() {
            assert!(read_state_dict(&whole[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn a_call_without_its_arguments_is_refused() {
        assert!(read_state_dict(b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.").is_err());
    }
}
