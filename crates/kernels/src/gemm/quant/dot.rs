//! Integer dot products per output lane, as each instruction set does them: four inputs of q4, two of q8 at a time. All
//! are exact, so they agree.

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
    /// Two 16-bit halves for each output.
    type Wide: Copy;

    unsafe fn start() -> Self::Acc;
    /// `N` x 4 bytes of weights as (low nibbles, high nibbles), offset by 8.
    unsafe fn nibbles(from: *const u8) -> (Self::Weight, Self::Weight);
    /// Adds weights (with their offset) times the four codes at `x`; at most 8 times from [`start`](Self::start).
    unsafe fn dot(acc: Self::Acc, w: Self::Weight, x: *const i8) -> Self::Acc;
    /// The sum of q4, the weights' offset undone; `codes` is the sum of all codes it took.
    unsafe fn total(acc: Self::Acc, codes: i32) -> Self;
    /// `N` x 2 bytes, widened to 16 bits each.
    unsafe fn widen(from: *const u8) -> Self::Wide;
    /// Doubles every half.
    unsafe fn double(bits: Self::Wide) -> Self::Wide;
    /// Weights of q8: bytes at `low`, the ninth bit that of `bits`.
    unsafe fn join(low: *const u8, bits: Self::Wide) -> Self::Wide;
    /// Adds q8 weights (with their offset of 256) times the two codes at `x`.
    unsafe fn dot9(acc: Self::Acc, w: Self::Wide, x: *const i16) -> Self::Acc;
    /// The sum of q8, the weights' offset undone; `codes` is the sum of all codes it took.
    unsafe fn total9(acc: Self::Acc, codes: i32) -> Self;
}

impl Dot for ScalarLanes {
    const WIDE: usize = 2;
    const TALL: usize = 4;
    type Weight = [i8; 32];
    type Acc = [i32; 8];
    type Wide = [i16; 16];

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
    #[inline(always)]
    unsafe fn widen(from: *const u8) -> Self::Wide {
        // SAFETY: by the trait's contract.
        unsafe { from.cast::<[u8; 16]>().read_unaligned() }.map(i16::from)
    }
    #[inline(always)]
    unsafe fn double(bits: Self::Wide) -> Self::Wide {
        bits.map(|bits| bits << 1)
    }
    #[inline(always)]
    unsafe fn join(low: *const u8, bits: Self::Wide) -> Self::Wide {
        // SAFETY: forwarded.
        let low = unsafe { Self::widen(low) };
        std::array::from_fn(|i| low[i] | (bits[i] & 256))
    }
    #[inline(always)]
    unsafe fn dot9(mut acc: Self::Acc, w: Self::Wide, x: *const i16) -> Self::Acc {
        // SAFETY: by the trait's contract.
        let x = unsafe { x.cast::<[i16; 2]>().read_unaligned() };
        for lane in 0..8 {
            for i in 0..2 {
                acc[lane] += i32::from(w[lane * 2 + i]) * i32::from(x[i]);
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn total9(acc: Self::Acc, codes: i32) -> Self {
        Self(acc.map(|sum| (sum - 256 * codes) as f32))
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
        type Wide = __m256i;

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
        unsafe fn widen(from: *const u8) -> __m256i {
            unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(from.cast())) }
        }
        #[inline(always)]
        unsafe fn double(bits: __m256i) -> __m256i {
            unsafe { _mm256_add_epi16(bits, bits) }
        }
        #[inline(always)]
        unsafe fn join(low: *const u8, bits: __m256i) -> __m256i {
            unsafe { _mm256_or_si256(Self::widen(low), _mm256_and_si256(bits, _mm256_set1_epi16(256))) }
        }
        #[inline(always)]
        unsafe fn dot9(acc: __m256i, w: __m256i, x: *const i16) -> __m256i {
            unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(w, _mm256_set1_epi32(four(x.cast())))) }
        }
        #[inline(always)]
        unsafe fn total9(acc: __m256i, codes: i32) -> Self {
            unsafe { _mm256_cvtepi32_ps(_mm256_sub_epi32(acc, _mm256_set1_epi32(256 * codes))) }
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
        type Wide = __m512i;

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
        unsafe fn widen(from: *const u8) -> __m512i {
            unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(from.cast())) }
        }
        #[inline(always)]
        unsafe fn double(bits: __m512i) -> __m512i {
            unsafe { _mm512_add_epi16(bits, bits) }
        }
        #[inline(always)]
        unsafe fn join(low: *const u8, bits: __m512i) -> __m512i {
            // (bits and 256) or low.
            unsafe { _mm512_ternarylogic_epi32::<0xea>(bits, _mm512_set1_epi16(256), Self::widen(low)) }
        }
        #[inline(always)]
        unsafe fn dot9(acc: __m512i, w: __m512i, x: *const i16) -> __m512i {
            unsafe { _mm512_dpwssd_epi32(acc, w, _mm512_set1_epi32(four(x.cast()))) }
        }
        #[inline(always)]
        unsafe fn total9(acc: __m512i, codes: i32) -> Self {
            unsafe { _mm512_cvtepi32_ps(_mm512_sub_epi32(acc, _mm512_set1_epi32(256 * codes))) }
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
        type Wide = int16x8_t;

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
        unsafe fn widen(from: *const u8) -> int16x8_t {
            unsafe { vreinterpretq_s16_u16(vmovl_u8(vld1_u8(from))) }
        }
        #[inline(always)]
        unsafe fn double(bits: int16x8_t) -> int16x8_t {
            unsafe { vaddq_s16(bits, bits) }
        }
        #[inline(always)]
        unsafe fn join(low: *const u8, bits: int16x8_t) -> int16x8_t {
            unsafe { vorrq_s16(Self::widen(low), vandq_s16(bits, vdupq_n_s16(256))) }
        }
        #[inline(always)]
        unsafe fn dot9(acc: int32x4_t, w: int16x8_t, x: *const i16) -> int32x4_t {
            unsafe {
                let x = vreinterpretq_s16_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
                let low = vmull_s16(vget_low_s16(w), vget_low_s16(x));
                let high = vmull_s16(vget_high_s16(w), vget_high_s16(x));
                vaddq_s32(acc, vpaddq_s32(low, high))
            }
        }
        #[inline(always)]
        unsafe fn total9(acc: int32x4_t, codes: i32) -> Self {
            unsafe { vcvtq_f32_s32(vsubq_s32(acc, vdupq_n_s32(256 * codes))) }
        }
        #[inline(always)]
        unsafe fn total(acc: int32x4_t, codes: i32) -> Self {
            unsafe { vcvtq_f32_s32(vsubq_s32(acc, vdupq_n_s32(8 * codes))) }
        }
    }
}
