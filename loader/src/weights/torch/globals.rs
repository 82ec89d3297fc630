//! The functions and classes that a pickle may name. There are no others.

use crate::weights::Dtype;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    Size,
    /// `_rebuild_tensor`, `_v2`, `_v3`.
    Tensor(u8),
    Parameter,
    TensorSubclass,
    /// None: untyped.
    Storage(Option<Dtype>),
    Dtype(Dtype),
    Inert,
}

/// None: refused.
pub(super) fn find(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor") => Global::Tensor(1),
        ("torch._utils", "_rebuild_tensor_v2") => Global::Tensor(2),
        ("torch._utils", "_rebuild_tensor_v3") => Global::Tensor(3),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::Parameter,
        ("torch._tensor", "_rebuild_from_type_v2") => Global::TensorSubclass,
        ("torch", "Size") => Global::Size,
        ("torch.storage", "UntypedStorage") => Global::Storage(None),
        ("torch" | "torch.cuda", _) if name.ends_with("Storage") => Global::Storage(Some(storage(name)?)),
        ("torch", "Tensor" | "device" | "strided") | ("torch.nn.parameter", "Parameter") => Global::Inert,
        ("torch", "complex32" | "complex64" | "complex128") => Global::Inert,
        ("torch", _) => Global::Dtype(dtype(name)?),
        ("argparse", "Namespace") | ("collections", "defaultdict") | ("typing", "Any") => Global::Inert,
        ("pathlib" | "pathlib._local", "Path" | "PosixPath" | "PurePosixPath") => Global::Inert,
        ("omegaconf.dictconfig", "DictConfig") | ("omegaconf.listconfig", "ListConfig") => Global::Inert,
        ("omegaconf.base", "ContainerMetadata" | "Metadata") | ("omegaconf.nodes", "AnyNode") => Global::Inert,
        ("numpy", "dtype") | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Global::Inert,
        ("_codecs", "encode") => Global::Inert,
        ("builtins" | "__builtin__", "bool" | "dict" | "float" | "int" | "list" | "set" | "str" | "tuple") => Global::Inert,
        _ => return None,
    })
}

fn storage(name: &str) -> Option<Dtype> {
    Some(match name {
        "BoolStorage" => Dtype::Bool,
        "ByteStorage" => Dtype::U8,
        "CharStorage" => Dtype::I8,
        "ShortStorage" => Dtype::I16,
        "IntStorage" => Dtype::I32,
        "LongStorage" => Dtype::I64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::Bf16,
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        _ => return None,
    })
}

fn dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "bool" => Dtype::Bool,
        "uint8" => Dtype::U8,
        "int8" => Dtype::I8,
        "float8_e4m3fn" => Dtype::F8E4M3,
        "float8_e5m2" => Dtype::F8E5M2,
        "uint16" => Dtype::U16,
        "int16" => Dtype::I16,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::Bf16,
        "uint32" => Dtype::U32,
        "int32" => Dtype::I32,
        "float32" => Dtype::F32,
        "uint64" => Dtype::U64,
        "int64" => Dtype::I64,
        "float64" => Dtype::F64,
        _ => return None,
    })
}
