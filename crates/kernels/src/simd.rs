//! One vector of f32 lanes, as each instruction set has it, and the macro that compiles a generic kernel once per set.
//! `gemm` and `attention` are written against [`Lanes`] alone. Lanes run across outputs, so their number cannot show.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(crate) use std::arch::aarch64::float32x4_t as NeonLanes;
#[cfg(target_arch = "x86_64")]
pub(crate) use std::arch::x86_64::{__m256 as Avx2Lanes, __m512 as Avx512Lanes};

/// A vector of `N` f32 lanes.
///
/// # Safety
/// Every method needs the instruction set to be enabled in the function it is inlined into; pointers must be valid for
/// the lanes they name, without alignment.
pub(crate) trait Lanes: Copy {
    /// Lanes.
    const N: usize;
    /// Rows of a register tile that covers [`NARROW`](Self::NARROW) pairs of vectors.
    const ROWS: usize;
    /// Rows of a register tile that covers a whole panel.
    const WIDE_ROWS: usize;
    /// Pairs of vectors in a narrow tile.
    const NARROW: usize;
    /// Rows of a tile with twice as many pairs, where that is a whole panel and fits the registers; else 0.
    const LOW_ROWS: usize = 0;

    /// The same pointer, which the compiler takes for another one where it would otherwise keep what it loaded.
    #[inline(always)]
    fn anew(pointer: *const f32) -> *const f32 {
        pointer
    }

    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// The same value in all lanes.
    unsafe fn splat(from: *const f32) -> Self;
    /// `self + a * b`, rounded once.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// Widens `N` u32 of two bf16 each into (low halves, high halves).
    unsafe fn bf16_pair(from: *const u16) -> (Self, Self);
    /// Widens `N` bf16.
    unsafe fn bf16(from: *const u16) -> Self;
    /// Transposes 4 x 4 floats: four values of each row in `from` become four columns of 4 at `to`, `stride` floats apart.
    #[inline(always)]
    unsafe fn transpose4(from: [*const f32; 4], to: *mut f32, stride: usize) {
        for (row, from) in from.into_iter().enumerate() {
            for column in 0..4 {
                // SAFETY: by the trait's contract.
                unsafe { *to.add(column * stride + row) = *from.add(column) };
            }
        }
    }
    /// Asks for the cache line at `from`, which need not be valid, in the first-level cache.
    unsafe fn prefetch(from: *const u8);
    /// Asks for it in the second-level cache, which has room for more requests under way than the first.
    unsafe fn prefetch_far(from: *const u8);
}

/// Eight lanes in plain Rust: the path of [`Isa::Scalar`](crate::Isa).
#[derive(Clone, Copy)]
pub(crate) struct ScalarLanes(pub(crate) [f32; 8]);

impl Lanes for ScalarLanes {
    const N: usize = 8;
    const ROWS: usize = 6;
    const WIDE_ROWS: usize = 2;
    const NARROW: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: by the trait's contract.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: by the trait's contract.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: by the trait's contract.
        Self([unsafe { *from }; 8])
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        let mut out = self.0;
        for i in 0..8 {
            out[i] = a.0[i].mul_add(b.0[i], out[i]);
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        let mut out = self.0;
        for i in 0..8 {
            out[i] += other.0[i];
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        let mut out = self.0;
        for i in 0..8 {
            out[i] -= other.0[i];
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        let mut out = self.0;
        for i in 0..8 {
            out[i] *= other.0[i];
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn bf16_pair(from: *const u16) -> (Self, Self) {
        // SAFETY: by the trait's contract.
        let raw = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        let (mut low, mut high) = ([0.0; 8], [0.0; 8]);
        for i in 0..8 {
            low[i] = crate::packed::bf16_to_f32(raw[2 * i]);
            high[i] = crate::packed::bf16_to_f32(raw[2 * i + 1]);
        }
        (Self(low), Self(high))
    }
    #[inline(always)]
    unsafe fn bf16(from: *const u16) -> Self {
        // SAFETY: by the trait's contract.
        Self(unsafe { from.cast::<[u16; 8]>().read_unaligned() }.map(crate::packed::bf16_to_f32))
    }
    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_far(_from: *const u8) {}
}

/// Defines `unsafe fn name(isa, args)`, which calls `body::<L>(args)` compiled for the lanes of `isa`.
macro_rules! lanes_fn {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident;) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name(isa: $crate::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2($($arg: $ty),*) {
                // SAFETY: forwarded from the outer contract.
                unsafe { $body::<$crate::simd::Avx2Lanes>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512($($arg: $ty),*) {
                // SAFETY: forwarded from the outer contract.
                unsafe { $body::<$crate::simd::Avx512Lanes>($($arg),*) }
            }
            // SAFETY: `isa` names only instruction sets this CPU has; the rest is the outer contract.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::Isa::Avx2 => avx2($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::Isa::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    $crate::Isa::Neon => $body::<$crate::simd::NeonLanes>($($arg),*),
                    _ => $body::<$crate::simd::ScalarLanes>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use lanes_fn;
