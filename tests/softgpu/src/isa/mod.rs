//! What a kernel looks like when it is ready to run: decoded instructions, one flat program per
//! kernel with the device functions it calls behind it.

mod arith;
mod builder;
mod compare;
mod control;
mod convert;
mod float;
mod init;
pub mod lanes;
mod link;
mod mem;
mod packed;
mod preds;
pub mod softfloat;
mod warp;

use std::sync::Arc;

pub use convert::CLOCK_HIGH;
pub use link::{DYNAMIC_SHARED_BASE, LoadedVar, SHARED_BASE, link};

/// A lane loop: register frame, predicate frame, instruction, lanes to write.
pub type ExecFn = unsafe fn(*mut u32, *mut u32, &Instr, u32);

/// No guard predicate.
pub const GUARD_NONE: u32 = u32::MAX;

/// A decoded instruction. Operand fields are lane offsets into the frame (slot * 32) or predicate
/// indices, by operation; `imm` and `e` are the operation's own.
#[derive(Clone, Copy)]
pub struct Instr {
    /// What to do.
    pub op: Op,
    /// Predicate index * 2 + negated, or [`GUARD_NONE`].
    pub guard: u32,
    /// Destination.
    pub d: u32,
    /// First source.
    pub a: u32,
    /// Second source.
    pub b: u32,
    /// Third source.
    pub c: u32,
    /// Extra operand.
    pub e: u32,
    /// Immediate.
    pub imm: i64,
}

/// Operations by how the warp loop treats them. Indices point into the tables of [`Program`].
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub enum Op {
    /// Lanes in, lanes out.
    Alu(ExecFn),
    /// Report lanes of register `a` (bit `imm` of the tracked set) that were never written.
    CheckInit,
    /// Mark the lanes of tracked register `imm` as written.
    MarkInit,
    /// Tracked register `imm` becomes as initialised as tracked register `e`.
    CopyInit,
    Bra(u32),
    /// Indexed branch through a table.
    Brx(u32),
    Call(u32),
    Ret,
    Exit,
    Trap,
    Nop,
    /// Splat of the frame's local base plus `imm`, 64-bit.
    LocalBase,
    /// Splat of a kernel parameter: `imm` is its offset, `e` its encoding (see `ParamLoad`).
    LdParam(u32),
    Ld(u32),
    St(u32),
    Atom(u32),
    CpAsync(u32),
    CpCommit,
    /// Wait until at most `imm` groups are pending.
    CpWait,
    LdMatrix(u32),
    StMatrix(u32),
    Bar(u32),
    BarWarp,
    Fence,
    Shfl(u32),
    Vote(u32),
    Match(u32),
    Redux(u32),
    ActiveMask,
    Elect,
    Clock,
    Mma(u32),
    /// Call of a function the driver provides.
    Builtin(u32),
}

/// Classes of instructions for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Class {
    Integer,
    Float,
    Half,
    Double,
    Special,
    Convert,
    Compare,
    Move,
    Control,
    Global,
    Shared,
    Local,
    Param,
    Atomic,
    AsyncCopy,
    Matrix,
    Warp,
    Sync,
    Mma,
    /// Bookkeeping of the executor itself: counted nowhere.
    Hidden,
}

/// Names of the classes in reports, in the order of [`Class`].
pub const CLASS_NAMES: [&str; 19] = [
    "integer",
    "float",
    "half",
    "double",
    "special",
    "convert",
    "compare",
    "move",
    "control",
    "global",
    "shared",
    "local",
    "param",
    "atomic",
    "async_copy",
    "matrix",
    "warp",
    "sync",
    "mma",
];

/// Address spaces an access can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MemSpace {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

/// Address of a memory instruction.
#[derive(Debug, Clone, Copy)]
pub struct Addr {
    /// Lane offset of the address register; meaningless when absolute.
    pub reg: u32,
    /// The register holds 64-bit lanes.
    pub wide: bool,
    /// No register: the address is `offset`.
    pub absolute: bool,
    /// Added to the register.
    pub offset: i64,
}

/// A load or store.
#[derive(Debug, Clone, Copy)]
pub struct MemOp {
    /// Space named by the instruction.
    pub space: MemSpace,
    /// Where.
    pub addr: Addr,
    /// Bytes of one element in memory: 1, 2, 4, 8.
    pub element: u32,
    /// Elements per lane: 1, 2, 4, 8.
    pub count: u32,
    /// Sign-extend narrow loads.
    pub signed: bool,
    /// Registers hold 64-bit lanes.
    pub wide: bool,
    /// Lane offsets of the registers; `u32::MAX` for `_`.
    pub regs: [u32; 8],
    /// volatile, relaxed, acquire, release: ordered by the programmer.
    pub strong: bool,
    /// Read-only path (`.nc`).
    pub read_only: bool,
}

impl MemOp {
    /// Bytes one lane accesses.
    #[inline(always)]
    pub fn bytes(&self) -> u64 {
        u64::from(self.element * self.count)
    }
}

/// How an atomic combines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AtomKind {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// An atom or red.
#[derive(Debug, Clone, Copy)]
pub struct AtomOp {
    /// Space named by the instruction.
    pub space: MemSpace,
    /// Where.
    pub addr: Addr,
    /// Combination.
    pub kind: AtomKind,
    /// Operand type.
    pub ty: crate::ptx::ast::Type,
    /// Destination; `u32::MAX` for red and `_`.
    pub d: u32,
    /// Operand.
    pub b: u32,
    /// Second operand of cas.
    pub c: u32,
    /// Atomic for other blocks too; false for the scope of a block.
    pub device: bool,
    /// Carries acquire or release itself.
    pub ordered: bool,
}

/// A cp.async.
#[derive(Debug, Clone, Copy)]
pub struct CpAsyncOp {
    /// Shared destination.
    pub dst: Addr,
    /// Global source.
    pub src: Addr,
    /// Bytes written.
    pub bytes: u32,
    /// Lane offset of the source size (32-bit); `u32::MAX` when all bytes are copied.
    pub src_size: u32,
    /// Predicate index of ignore-src; `u32::MAX` when absent.
    pub ignore: u32,
}

/// An ldmatrix or stmatrix of 8x8 16-bit matrices.
#[derive(Debug, Clone, Copy)]
pub struct MatrixOp {
    /// Row addresses.
    pub addr: Addr,
    /// Shared or generic.
    pub space: MemSpace,
    /// 1, 2 or 4 matrices.
    pub count: u32,
    /// Transposed.
    pub trans: bool,
    /// Registers.
    pub regs: [u32; 4],
}

/// Barrier flavours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BarKind {
    Sync,
    Arrive,
    RedPopc,
    RedAnd,
    RedOr,
}

/// A CTA barrier.
#[derive(Debug, Clone, Copy)]
pub struct BarOp {
    /// What it does.
    pub kind: BarKind,
    /// All lanes of the warp must arrive together.
    pub aligned: bool,
    /// Lane offset of the barrier number.
    pub id: u32,
    /// Lane offset of the thread count; `u32::MAX` for the whole block.
    pub threads: u32,
    /// Result: lane offset for popc, predicate index otherwise.
    pub d: u32,
    /// Source predicate index * 2 + negated.
    pub pred: u32,
}

/// Shuffle modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// A shfl.sync.
#[derive(Debug, Clone, Copy)]
pub struct ShflOp {
    /// Mode.
    pub mode: ShflMode,
    /// Destination.
    pub d: u32,
    /// Predicate destination; `u32::MAX` when absent.
    pub p: u32,
    /// Source value.
    pub a: u32,
    /// Lane or delta.
    pub b: u32,
    /// Clamp and segment mask.
    pub c: u32,
    /// Member mask.
    pub members: u32,
}

/// vote.sync, match.sync and redux.sync share this form.
#[derive(Debug, Clone, Copy)]
pub struct VoteOp {
    /// Which.
    pub kind: VoteKind,
    /// Destination: lane offset or predicate index.
    pub d: u32,
    /// Second destination of match.all: predicate index; `u32::MAX` when absent.
    pub p: u32,
    /// Source: predicate index * 2 + negated, or lane offset.
    pub a: u32,
    /// Lane offset of the member mask; `u32::MAX` for the old form without one.
    pub members: u32,
}

/// What a warp-wide instruction computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum VoteKind {
    All,
    Any,
    Uni,
    Ballot,
    MatchAny32,
    MatchAny64,
    MatchAll32,
    MatchAll64,
    RedAddU,
    RedMinU,
    RedMaxU,
    RedMinS,
    RedMaxS,
    RedAnd,
    RedOr,
    RedXor,
}

/// Input types of mma.sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MmaType {
    F16,
    BF16,
    TF32,
}

/// An mma.sync m16n8kK with row-major A and column-major B.
#[derive(Debug, Clone, Copy)]
pub struct MmaOp {
    /// Type of A and B.
    pub ty: MmaType,
    /// 4, 8 or 16.
    pub k: u32,
    /// C is f16.
    pub half_c: bool,
    /// D is f16.
    pub half_d: bool,
    /// Lane offsets.
    pub d: [u32; 4],
    /// Lane offsets.
    pub a: [u32; 4],
    /// Lane offsets.
    pub b: [u32; 2],
    /// Lane offsets.
    pub c: [u32; 4],
}

/// A ld.param of a kernel parameter at a known place.
#[derive(Debug, Clone, Copy)]
pub struct ParamLoad {
    /// Byte offset into the parameters.
    pub offset: u32,
    /// Bytes of one element.
    pub element: u32,
    /// Elements.
    pub count: u32,
    /// Sign-extend.
    pub signed: bool,
    /// Registers hold 64-bit lanes.
    pub wide: bool,
    /// Destinations.
    pub regs: [u32; 8],
}

/// A call site.
#[derive(Debug, Clone)]
pub struct CallSite {
    /// Index into [`Program::functions`].
    pub callee: u32,
    /// Slots copied in: caller, callee (lane offsets).
    pub inputs: Vec<(u32, u32)>,
    /// Slots copied back: callee, caller (lane offsets).
    pub outputs: Vec<(u32, u32)>,
}

/// A call of something that is not PTX.
#[derive(Debug, Clone)]
pub struct BuiltinCall {
    /// Which.
    pub kind: Builtin,
    /// Slots of the arguments, each 32-bit word in order (lane offsets).
    pub args: Vec<Vec<u32>>,
    /// Slots of the result.
    pub rets: Vec<u32>,
}

/// Functions the driver provides to kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Builtin {
    Vprintf,
    AssertFail,
}

/// Special registers that vary by warp or block and are written before a warp starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Special {
    Tid(u8),
    NTid(u8),
    CtaId(u8),
    NCtaId(u8),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    LaneMaskEq,
    LaneMaskLt,
    LaneMaskLe,
    LaneMaskGt,
    LaneMaskGe,
    DynamicSharedSize,
    TotalSharedSize,
    /// Halves of the address of a cooperative launch's workspace, as the driver passes them.
    WorkspaceHigh,
    WorkspaceLow,
    Zero,
    One,
}

/// A function inside a program.
#[derive(Debug, Clone, Default)]
pub struct Function {
    /// Name.
    pub name: String,
    /// First instruction.
    pub entry: u32,
    /// Register slots of a frame.
    pub slots: u32,
    /// Predicates of a frame.
    pub preds: u32,
    /// Tracked registers of a frame.
    pub tracked: u32,
    /// Bytes of local memory of a frame.
    pub local_bytes: u32,
    /// 32-bit constants: slot, value.
    pub consts: Vec<(u32, u32)>,
    /// 64-bit constants: first slot, value.
    pub consts_wide: Vec<(u32, u64)>,
    /// Special registers: slot, which.
    pub specials: Vec<(u32, Special)>,
}

/// A kernel parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Param {
    /// Byte offset.
    pub offset: u32,
    /// Size in bytes.
    pub bytes: u32,
}

/// A variable in shared memory. Physical offsets leave gaps between variables so that an index
/// past one's end does not land in the next.
#[derive(Debug, Clone)]
pub struct SharedVar {
    /// Name.
    pub name: String,
    /// Offset in the block's shared memory.
    pub offset: u32,
    /// Size.
    pub bytes: u32,
}

/// A kernel ready to run.
pub struct Program {
    /// Kernel name.
    pub name: String,
    /// Instructions of the kernel, then of the functions it calls.
    pub code: Vec<Instr>,
    /// Compiled without optimisation (`.target ..., debug`).
    pub debug: bool,
    /// PTX line of each instruction.
    pub lines: Vec<u32>,
    /// Source (file, line) of each instruction; (0, 0) where unknown.
    pub source: Vec<(u32, u32)>,
    /// Class of each instruction.
    pub classes: Vec<Class>,
    /// Lines of the PTX text, to quote in findings.
    pub text: Arc<Vec<String>>,
    /// Source files.
    pub files: Arc<Vec<(u32, String)>>,
    /// The kernel is function 0.
    pub functions: Vec<Function>,
    /// Kernel parameters.
    pub params: Vec<Param>,
    /// Bytes of all parameters.
    pub param_bytes: u32,
    /// Nominal static shared memory, as the compiler would report it.
    pub shared_bytes: u32,
    /// Physical layout of static shared memory.
    pub shared_vars: Vec<SharedVar>,
    /// Offset where dynamic shared memory starts.
    pub dynamic_shared: u32,
    /// `.maxntid` product and whether it is exact, when declared.
    pub max_threads: Option<([u32; 3], bool)>,
    /// Registers a thread would need, estimated from liveness: an upper guide, not ptxas.
    pub registers: u32,
    /// Tables the operations index.
    pub mems: Vec<MemOp>,
    /// Atomics.
    pub atoms: Vec<AtomOp>,
    /// cp.async.
    pub copies: Vec<CpAsyncOp>,
    /// ldmatrix and stmatrix.
    pub matrices: Vec<MatrixOp>,
    /// Barriers.
    pub bars: Vec<BarOp>,
    /// Shuffles.
    pub shfls: Vec<ShflOp>,
    /// Votes, matches, reductions.
    pub votes: Vec<VoteOp>,
    /// Tensor-core instructions.
    pub mmas: Vec<MmaOp>,
    /// Parameter loads.
    pub param_loads: Vec<ParamLoad>,
    /// Call sites.
    pub calls: Vec<CallSite>,
    /// Builtin call sites.
    pub builtins: Vec<BuiltinCall>,
    /// Branch tables.
    pub tables: Vec<Vec<u32>>,
    /// Names of tracked registers, by function and index, for messages.
    pub tracked_names: Vec<Vec<String>>,
}

impl Program {
    /// The quoted PTX of an instruction.
    pub fn quote(&self, pc: u32) -> &str {
        let line = self.lines.get(pc as usize).copied().unwrap_or(0);
        self.text.get(line.wrapping_sub(1) as usize).map_or("", |s| s.trim())
    }

    /// Source place of an instruction, where the compiler left one.
    pub fn source_of(&self, pc: u32) -> Option<(String, u32)> {
        let (file, line) = *self.source.get(pc as usize)?;
        let path = self.files.iter().find(|f| f.0 == file)?;
        (line != 0).then(|| (path.1.clone(), line))
    }
}
