//! The syntax tree of a PTX module. Names borrow from the source text.

/// A scalar type of PTX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    BF16,
    BF16x2,
    TF32,
    F32,
    F64,
    U16x2,
    S16x2,
}

impl Type {
    /// The type a modifier such as `s32` names.
    pub fn from_name(name: &str) -> Option<Type> {
        Some(match name {
            "pred" => Type::Pred,
            "b8" => Type::B8,
            "b16" => Type::B16,
            "b32" => Type::B32,
            "b64" => Type::B64,
            "b128" => Type::B128,
            "u8" => Type::U8,
            "u16" => Type::U16,
            "u32" => Type::U32,
            "u64" => Type::U64,
            "s8" => Type::S8,
            "s16" => Type::S16,
            "s32" => Type::S32,
            "s64" => Type::S64,
            "f16" => Type::F16,
            "f16x2" => Type::F16x2,
            "bf16" => Type::BF16,
            "bf16x2" => Type::BF16x2,
            "tf32" => Type::TF32,
            "f32" => Type::F32,
            "f64" => Type::F64,
            "u16x2" => Type::U16x2,
            "s16x2" => Type::S16x2,
            _ => return None,
        })
    }

    /// Size in memory.
    pub fn bytes(self) -> u32 {
        match self {
            Type::Pred | Type::B8 | Type::U8 | Type::S8 => 1,
            Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::BF16 => 2,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 => 8,
            Type::B128 => 16,
            _ => 4,
        }
    }

    /// Two's complement integers.
    pub fn is_signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64 | Type::S16x2)
    }

    /// Floating-point types of any width.
    pub fn is_float(self) -> bool {
        matches!(
            self,
            Type::F16
                | Type::F16x2
                | Type::BF16
                | Type::BF16x2
                | Type::TF32
                | Type::F32
                | Type::F64
        )
    }
}

/// A state space a variable is declared in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Space {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// One element of a variable's initialiser.
#[derive(Debug, Clone, PartialEq)]
pub enum Init<'a> {
    /// An integer; truncated to the element's width.
    Int(i64),
    /// Bits of an `0f` literal.
    F32(u32),
    /// Bits of an `0d` literal.
    F64(u64),
    /// The address of another variable plus an offset.
    Address(&'a str, i64),
}

/// A variable in any space, a parameter included.
#[derive(Debug, Clone)]
pub struct Var<'a> {
    /// Line of the declaration.
    pub line: u32,
    /// Where it lives.
    pub space: Space,
    /// Element type.
    pub ty: Type,
    /// Alignment in bytes.
    pub align: u32,
    /// Name.
    pub name: &'a str,
    /// Size in bytes; 0 for `[]`.
    pub bytes: u64,
    /// Elements of the initialiser, in order; the rest is zero.
    pub init: Vec<Init<'a>>,
    /// Declared `.extern`.
    pub is_extern: bool,
}

/// An operand of an instruction.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand<'a> {
    /// A register, special register, label or symbol; `%tid.x` keeps its suffix.
    Name(&'a str),
    /// `!%p`.
    Not(&'a str),
    /// An integer literal.
    Int(i64),
    /// Bits of an `0f` literal.
    F32(u32),
    /// Bits of an `0d` literal.
    F64(u64),
    /// `{a, b}`.
    Vector(Vec<Operand<'a>>),
    /// `[base + offset]`; the base is empty for an absolute address.
    Address(&'a str, i64),
    /// `[map, {x, y}]` of the tensor copies.
    Tensor(Vec<Operand<'a>>),
    /// `d|p`.
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
    /// `_`.
    Sink,
    /// `(a, b)` of a call.
    List(Vec<Operand<'a>>),
}

/// An instruction as written.
#[derive(Debug, Clone)]
pub struct Instr<'a> {
    /// 1-based PTX line.
    pub line: u32,
    /// `@p` or `@!p`: negated, predicate.
    pub guard: Option<(bool, &'a str)>,
    /// The opcode with all its modifiers, as written.
    pub opcode: &'a str,
    /// Operands in order.
    pub operands: Vec<Operand<'a>>,
    /// The text from opcode to semicolon.
    pub text: &'a str,
}

/// A statement of a function body.
#[derive(Debug, Clone)]
pub enum Stmt<'a> {
    /// `.reg .b32 %r<n>;` or a single register.
    Reg {
        /// Register type.
        ty: Type,
        /// Name or prefix.
        name: &'a str,
        /// Number of registers of a prefix.
        count: Option<u32>,
    },
    /// A variable of this scope.
    Var(Var<'a>),
    /// A label.
    Label(&'a str),
    /// An instruction.
    Instr(Instr<'a>),
    /// A nested scope.
    Scope(Vec<Stmt<'a>>),
    /// `.loc file line`.
    Loc {
        /// Index into the module's files.
        file: u32,
        /// Source line.
        line: u32,
    },
    /// `label: .branchtargets a, b;`
    BranchTargets(&'a str, Vec<&'a str>),
}

/// A kernel or a device function.
#[derive(Debug, Clone)]
pub struct Func<'a> {
    /// Line of its header.
    pub line: u32,
    /// Name.
    pub name: &'a str,
    /// `.entry`.
    pub is_entry: bool,
    /// Parameters in order.
    pub params: Vec<Var<'a>>,
    /// Return parameters.
    pub rets: Vec<Var<'a>>,
    /// Statements; none for a declaration.
    pub body: Option<Vec<Stmt<'a>>>,
    /// `.maxntid` or `.reqntid`.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid` rather than `.maxntid`.
    pub exact_threads: bool,
    /// `.minnctapersm`.
    pub min_blocks: u32,
    /// `.maxnreg`.
    pub max_registers: u32,
}

/// A parsed module.
#[derive(Debug, Clone, Default)]
pub struct Module<'a> {
    /// ISA version, major and minor.
    pub version: (u32, u32),
    /// Digits of `sm_80`.
    pub target: u32,
    /// `.target` names `debug`.
    pub debug: bool,
    /// Module-level variables.
    pub vars: Vec<Var<'a>>,
    /// Functions and kernels.
    pub funcs: Vec<Func<'a>>,
    /// `.file` table: index and path.
    pub files: Vec<(u32, String)>,
}
