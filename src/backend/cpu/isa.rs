//! Which vector instructions a kernel may use, decided at run time.

use std::sync::OnceLock;

/// Instruction sets that kernels are compiled for, the narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What the target always has.
    Portable,
    /// AVX2 with FMA: eight f32.
    Avx2,
    /// AVX-512 F, BW, DQ, VL: sixteen f32.
    Avx512,
}

impl Isa {
    /// The widest set this machine has.
    pub fn detect() -> Isa {
        static WIDEST: OnceLock<Isa> = OnceLock::new();
        *WIDEST.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("fma")
                {
                    return Isa::Avx512;
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    return Isa::Avx2;
                }
            }
            Isa::Portable
        })
    }

    /// Every set this machine has, to test each path.
    pub fn available() -> impl Iterator<Item = Isa> {
        [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|&isa| isa <= Isa::detect())
    }
}

/// Compiles a function once for each [`Isa`] and calls the one that its first
/// argument, an [`Isa`] that [`Isa::detect`] has vouched for, names.
///
/// The body is ordinary Rust whose loops the compiler vectorises; everything it
/// calls has to be `#[inline(always)]` to be compiled with it. `mul_add` is one
/// rounding on every path, so that bodies without reductions over lanes give
/// the same bits on all of them.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis unsafe fn $($rest:tt)*) => {
        $crate::backend::cpu::isa::multiversion! { @[unsafe] $(#[$meta])* $vis $($rest)* }
    };
    ($(#[$meta:meta])* $vis:vis fn $($rest:tt)*) => {
        $crate::backend::cpu::isa::multiversion! { @[] $(#[$meta])* $vis $($rest)* }
    };
    (@[$($safety:tt)*] $(#[$meta:meta])* $vis:vis
        $name:ident($isa:ident: Isa $(, $arg:ident: $ty:ty)* $(,)?)
        $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, unused_unsafe)]
        $vis $($safety)* fn $name(
            $isa: $crate::backend::cpu::isa::Isa $(, $arg: $ty)*
        ) $(-> $ret)? {
            #[inline(always)]
            $($safety)* fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                $($safety)* fn avx512($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the promise of this function's caller, if it asks for one.
                    unsafe { body($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma")]
                $($safety)* fn avx2($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: as above.
                    unsafe { body($($arg),*) }
                }
                assert!($isa <= $crate::backend::cpu::isa::Isa::detect());
                match $isa {
                    // SAFETY: the assertion says that the machine has these
                    // instructions; the rest is the caller's promise.
                    $crate::backend::cpu::isa::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::backend::cpu::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::backend::cpu::isa::Isa::Portable => {}
                }
            }
            // SAFETY: the caller's promise.
            unsafe { body($($arg),*) }
        }
    };
}
pub(crate) use multiversion;
