//! Four-byte dot products per output lane, as each instruction set does them. All are exact, so they agree.

use crate::simd::{Lanes, ScalarLanes};

/// Integer side of a vector of outputs: lane `i` of a weight vector holds 4 bytes of output `i`.
///
/// # Safety
/// As [`Lanes`].
pub(super) trait Dot: Lanes {
    /// Rows done with a whole panel of accumulators, and with two vectors of them.
    const WIDE: usize;
    const TALL: usize;
    type Weight: Copy;
    type Acc: Copy;

    unsafe fn start() -> Self::Acc;
    /// `N` x 4 bytes of weights as (low nibbles, high nibbles), offset by 8.
    unsafe fn nibbles(from: *const u8) -> (Self::Weight, Self::Weight);
    /// Adds weights (with their offset) times the four codes at `x`; at most 8 times from [`start`](Self::start).
    unsafe fn dot(acc: Self::Acc, w: Self::Weight, x: *const i8) -> Self::Acc;
    /// The sum, the weights' offset undone; `codes` is the sum of all codes it took.
    unsafe fn total(acc: Self::Acc, codes: i32) -> Self;
}

impl Dot for ScalarLanes {
    const WIDE: usize = 2;
    const TALL: usize = 4;
    type Weight = [i8; 32];
    type Acc = [i32; 8];

    #[inline(always)]
    unsafe fn start() -> Self::Acc {
        [0; 8]
    }
    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> (Self::Weight, Self::Weight) {
        // SAFETY: by the trait's contract.
        let raw = unsafe { from.cast::<[u8; 32]>().read_unaligned() };
        (raw.map(|byte| (byte & 15) as i8), raw.map(|byte| (byte >> 4) as i8))
    }
    #[inline(always)]
    unsafe fn dot(mut acc: Self::Acc, w: Self::Weight, x: *const i8) -> Self::Acc {
        // SAFETY: by the trait's contract.
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() };
        for lane in 0..8 {
            for i in 0..4 {
                acc[lane] += i32::from(w[lane * 4 + i]) * i32::from(x[i]);
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn total(acc: Self::Acc, codes: i32) -> Self {
        Self(acc.map(|sum| (sum - 8 * codes) as f32))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Dot;

    // SAFETY (all of this module): intrinsics are called under the trait's contract, which is theirs.

    #[inline(always)]
    unsafe fn four(x: *const i8) -> i32 {
        unsafe { x.cast::<i32>().read_unaligned() }
    }

    impl Dot for __m256 {
        const WIDE: usize = 2;
        const TALL: usize = 4;
        type Weight = __m256i;
        type Acc = __m256i;

        #[inline(always)]
        unsafe fn start() -> __m256i {
            unsafe { _mm256_setzero_si256() }
        }
        #[inline(always)]
        unsafe fn nibbles(from: *const u8) -> (__m256i, __m256i) {
            unsafe {
                let raw = _mm256_loadu_si256(from.cast());
                let low = _mm256_set1_epi8(15);
                (_mm256_and_si256(raw, low), _mm256_and_si256(_mm256_srli_epi16::<4>(raw), low))
            }
        }
        /// Sums of pairs stay 16 bits wide for the whole block: 8 * 2 * 15 * 127 is below 2^15.
        #[inline(always)]
        unsafe fn dot(acc: __m256i, w: __m256i, x: *const i8) -> __m256i {
            unsafe { _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, _mm256_set1_epi32(four(x)))) }
        }
        #[inline(always)]
        unsafe fn total(acc: __m256i, codes: i32) -> Self {
            unsafe {
                let sum = _mm256_madd_epi16(acc, _mm256_set1_epi16(1));
                _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_set1_epi32(8 * codes)))
            }
        }
    }

    impl Dot for __m512 {
        const WIDE: usize = 8;
        const TALL: usize = 8;
        type Weight = __m512i;
        type Acc = __m512i;

        #[inline(always)]
        unsafe fn start() -> __m512i {
            unsafe { _mm512_setzero_si512() }
        }
        #[inline(always)]
        unsafe fn nibbles(from: *const u8) -> (__m512i, __m512i) {
            unsafe {
                let raw = _mm512_loadu_si512(from.cast());
                let low = _mm512_set1_epi8(15);
                (_mm512_and_si512(raw, low), _mm512_and_si512(_mm512_srli_epi16::<4>(raw), low))
            }
        }
        #[inline(always)]
        unsafe fn dot(acc: __m512i, w: __m512i, x: *const i8) -> __m512i {
            unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(four(x))) }
        }
        #[inline(always)]
        unsafe fn total(acc: __m512i, codes: i32) -> Self {
            unsafe { _mm512_cvtepi32_ps(_mm512_sub_epi32(acc, _mm512_set1_epi32(8 * codes))) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    use super::Dot;

    // SAFETY (all of this module): intrinsics are called under the trait's contract; NEON is part of the base
    // architecture.

    impl Dot for float32x4_t {
        const WIDE: usize = 2;
        const TALL: usize = 4;
        type Weight = int8x16_t;
        type Acc = int32x4_t;

        #[inline(always)]
        unsafe fn start() -> int32x4_t {
            unsafe { vdupq_n_s32(0) }
        }
        #[inline(always)]
        unsafe fn nibbles(from: *const u8) -> (int8x16_t, int8x16_t) {
            unsafe {
                let raw = vld1q_u8(from);
                let low = vandq_u8(raw, vdupq_n_u8(15));
                (vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(vshrq_n_u8::<4>(raw)))
            }
        }
        #[inline(always)]
        unsafe fn dot(acc: int32x4_t, w: int8x16_t, x: *const i8) -> int32x4_t {
            unsafe {
                let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
                let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
                let high = vpaddlq_s16(vmull_s8(vget_high_s8(w), vget_high_s8(x)));
                vaddq_s32(acc, vpaddq_s32(low, high))
            }
        }
        #[inline(always)]
        unsafe fn total(acc: int32x4_t, codes: i32) -> Self {
            unsafe { vcvtq_f32_s32(vsubq_s32(acc, vdupq_n_s32(8 * codes))) }
        }
    }
}
