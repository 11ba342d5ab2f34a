//! Weights as the kernels read them: panels of 32 outputs, inside a panel input by input. `model` fills them row by
//! row while loading a checkpoint; `linear` and `conv` only read.
//!
//! One step of a panel, by format:
//! * `F32`: for each input, 32 floats (two cache lines).
//! * `Bf16`: for each input, 16 little-endian u32; the low half of lane `i` is output `i`, the high half output
//!   `i + 16`, so that one shift and one mask widen a whole line (one cache line).
//! * `Q8`: for each block of 16 inputs, 32 bf16 scales; the ninth bits, for each output a byte of even inputs and one of odd
//!   ones, the first the highest; then 8 groups of 2 inputs: 32 outputs x 2 low bytes. Each value is offset by 256.
//! * `Q4`: for each block of 32 inputs, 32 bf16 scales, then 4 double groups: 32 outputs x 4 bytes, the low nibble
//!   from group `2g`, the high one from `2g + 1`, each value offset by 8.

mod quant;

use crate::Error;
use crate::aligned::AlignedBuf;
use crate::gemm::arrange::transpose;
use crate::isa::{isa, simd_fn};

pub(crate) use quant::{BLOCK, q4_value};

/// Outputs in a panel.
pub(crate) const PANEL: usize = 32;
/// Bytes of scales at the start of a quantised block.
pub(crate) const SCALES: usize = 2 * PANEL;
/// Inputs of a q8 block.
pub(crate) const Q8_INPUTS: usize = 16;
/// Where ninth bits and low bytes of a q8 block start.
pub(crate) const Q8_BITS: usize = SCALES;
pub(crate) const Q8_LOW: usize = Q8_BITS + Q8_INPUTS * PANEL / 8;
/// Bytes of one q8 block of a panel.
pub(crate) const Q8_BLOCK: usize = Q8_LOW + Q8_INPUTS * PANEL;
/// Bytes of one q4 block of a panel.
pub(crate) const Q4_BLOCK: usize = SCALES + PANEL * BLOCK / 2;

/// How weights are stored. Part of the numerics id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 32-bit floats.
    F32,
    /// bfloat16, widened exactly when used: same bits as `F32` for weights that are bf16 already.
    Bf16,
    /// A sign and 8 bits, one bf16 scale per 16 inputs; activations to 16 bits.
    Q8,
    /// Signed 4-bit, one bf16 scale per 32 inputs; activations to 8 bits.
    Q4,
}

impl WeightFormat {
    /// Short lower-case name, as flags and numerics ids spell it.
    pub fn name(self) -> &'static str {
        match self {
            WeightFormat::F32 => "f32",
            WeightFormat::Bf16 => "bf16",
            WeightFormat::Q8 => "q8",
            WeightFormat::Q4 => "q4",
        }
    }

    /// Bytes one panel of `k` inputs takes.
    fn panel_bytes(self, k: usize) -> usize {
        match self {
            WeightFormat::F32 => k * PANEL * 4,
            WeightFormat::Bf16 => k * PANEL * 2,
            WeightFormat::Q8 => k.div_ceil(Q8_INPUTS) * Q8_BLOCK,
            WeightFormat::Q4 => k.div_ceil(BLOCK) * Q4_BLOCK,
        }
    }
}

/// Widens a bf16.
#[inline(always)]
pub fn bf16_to_f32(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Rounds to bf16, to nearest, ties to even; NaN stays NaN.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded }
}

/// A weight matrix of `n` outputs and `k` inputs, ready for [`linear`](crate::linear()).
pub struct Packed {
    n: usize,
    k: usize,
    format: WeightFormat,
    data: AlignedBuf<u8>,
}

impl Packed {
    /// Packs row-major f32 `rows` (`n` rows of `k`).
    ///
    /// # Errors
    /// [`Error::Shape`] if `rows` isn't `n * k` long; [`Error::NotRepresentable`] for a value that isn't finite in a
    /// quantised format.
    pub fn pack_f32(n: usize, k: usize, rows: &[f32], format: WeightFormat) -> Result<Self, Error> {
        check("weight", n * k, rows.len())?;
        let mut builder = PackedBuilder::new(n, k, format);
        for row in rows.chunks_exact(k.max(1)) {
            builder.push_row_f32(row)?;
        }
        builder.finish()
    }

    /// Packs row-major bf16 `rows` (`n` rows of `k`).
    ///
    /// # Errors
    /// As [`pack_f32`](Self::pack_f32).
    pub fn pack_bf16(n: usize, k: usize, rows: &[u16], format: WeightFormat) -> Result<Self, Error> {
        check("weight", n * k, rows.len())?;
        let mut builder = PackedBuilder::new(n, k, format);
        for row in rows.chunks_exact(k.max(1)) {
            builder.push_row_bf16(row)?;
        }
        builder.finish()
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Storage format.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Bytes held, padding to whole panels included: what one pass over the weight reads.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// The weights of output `row` as the kernels see them, `k` values into `out`: one cache line per value, so for
    /// tests and rare look-ups. Embedding tables are better kept in a [`Table`](crate::Table).
    ///
    /// # Panics
    /// If `row` is not below `n` or `out` isn't `k` long.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n && out.len() == self.k, "row_f32: shapes differ");
        let panel = self.panel(row / PANEL);
        let lane = row % PANEL;
        for (k, out) in out.iter_mut().enumerate() {
            *out = match self.format {
                WeightFormat::F32 => f32::from_le_bytes(bytes(panel, (k * PANEL + lane) * 4)),
                WeightFormat::Bf16 => bf16_to_f32(u16::from_le_bytes(bytes(panel, 2 * (k * PANEL + bf16_lane(lane))))),
                WeightFormat::Q8 | WeightFormat::Q4 => {
                    let (scale, value) = self.quantised(panel, lane, k);
                    scale * value as f32
                }
            };
        }
    }

    /// Scale and integer of one quantised weight.
    fn quantised(&self, panel: &[u8], lane: usize, k: usize) -> (f32, i32) {
        let (inputs, size) = if self.format == WeightFormat::Q8 { (Q8_INPUTS, Q8_BLOCK) } else { (BLOCK, Q4_BLOCK) };
        let (block, within) = (&panel[k / inputs * size..][..size], k % inputs);
        let scale = bf16_to_f32(u16::from_le_bytes(bytes(block, 2 * lane)));
        let value = match self.format {
            WeightFormat::Q8 => {
                let at = lane * 2 + within % 2;
                let ninth = i32::from(block[Q8_BITS + at] >> (7 - within / 2) & 1);
                i32::from(block[Q8_LOW + within / 2 * 2 * PANEL + at]) + 256 * ninth - 256
            }
            _ => q4_value(block[SCALES + (within / 8 * PANEL + lane) * 4 + within % 4], within / 4 % 2),
        };
        (scale, value)
    }

    /// Scale and integer of input `k` of output `row`, in a quantised format: for tests of what `linear` adds.
    ///
    /// # Panics
    /// If `row` or `k` is beyond the weight, or the format isn't quantised.
    pub fn quantum(&self, row: usize, k: usize) -> (f32, i32) {
        assert!(
            matches!(self.format, WeightFormat::Q8 | WeightFormat::Q4) && row < self.n && k < self.k,
            "quantum: not there"
        );
        self.quantised(self.panel(row / PANEL), row % PANEL, k)
    }

    /// Number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// One panel's bytes, 64-byte aligned.
    pub(crate) fn panel(&self, index: usize) -> &[u8] {
        let size = self.format.panel_bytes(self.k);
        &self.data[index * size..][..size]
    }
}

simd_fn! {
    /// Replaces each of `low` by the bits of two bf16: its own in the low half, that of `high` in the high half.
    fn join_bf16(low: &mut [f32], high: &[f32]) {
        for (low, &high) in low.iter_mut().zip(high) {
            *low = f32::from_bits(u32::from(f32_to_bf16(*low)) | u32::from(f32_to_bf16(high)) << 16);
        }
    }
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&from[at..at + N]);
    out
}

/// Where output `lane` of a panel sits among the 32 u16 of a bf16 step.
#[inline(always)]
pub(crate) fn bf16_lane(lane: usize) -> usize {
    lane % 16 * 2 + lane / 16
}

fn check(what: &'static str, expected: usize, got: usize) -> Result<(), Error> {
    if expected == got { Ok(()) } else { Err(Error::Shape { what, expected, got }) }
}

/// Packs a weight row by row, in output order, with one panel of staging: the peak is the packed bytes plus 32 rows.
/// Weights that share their input (q, k, v; gate, up) become one by pushing all their rows.
pub struct PackedBuilder {
    packed: Packed,
    staged: Vec<f32>,
    rows: usize,
}

impl PackedBuilder {
    /// A builder for `n` outputs of `k` inputs.
    pub fn new(n: usize, k: usize, format: WeightFormat) -> Self {
        let data = AlignedBuf::zeroed(n.div_ceil(PANEL) * format.panel_bytes(k));
        Self { packed: Packed { n, k, format, data }, staged: vec![0.0; PANEL * k], rows: 0 }
    }

    /// Adds the next output's weights.
    ///
    /// # Errors
    /// [`Error::Shape`] for a row of another length or one too many; [`Error::NotRepresentable`] as in
    /// [`Packed::pack_f32`], at the latest with the last row.
    pub fn push_row_f32(&mut self, row: &[f32]) -> Result<(), Error> {
        self.slot(row.len())?.copy_from_slice(row);
        self.advance()
    }

    /// Adds the next output's weights from bf16.
    ///
    /// # Errors
    /// As [`push_row_f32`](Self::push_row_f32).
    pub fn push_row_bf16(&mut self, row: &[u16]) -> Result<(), Error> {
        for (to, &from) in self.slot(row.len())?.iter_mut().zip(row) {
            *to = bf16_to_f32(from);
        }
        self.advance()
    }

    /// The packed weight.
    ///
    /// # Errors
    /// [`Error::Shape`] if rows are missing.
    pub fn finish(self) -> Result<Packed, Error> {
        check("weight rows", self.packed.n, self.rows)?;
        Ok(self.packed)
    }

    fn slot(&mut self, len: usize) -> Result<&mut [f32], Error> {
        check("weight row", self.packed.k, len)?;
        if self.rows == self.packed.n {
            return Err(Error::Shape { what: "weight rows", expected: self.packed.n, got: self.rows + 1 });
        }
        let start = self.rows % PANEL * len;
        Ok(&mut self.staged[start..start + len])
    }

    fn advance(&mut self) -> Result<(), Error> {
        self.rows += 1;
        if self.rows.is_multiple_of(PANEL) || self.rows == self.packed.n {
            let panel = (self.rows - 1) / PANEL;
            self.store_panel(panel)?;
            self.staged.fill(0.0);
        }
        Ok(())
    }

    fn store_panel(&mut self, index: usize) -> Result<(), Error> {
        let (k, format) = (self.packed.k, self.packed.format);
        let size = format.panel_bytes(k);
        let panel = &mut self.packed.data[index * size..][..size];
        match format {
            // SAFETY: staged holds a panel's rows, and a step takes as many bytes as 32 (or 16 u32 for bf16) values.
            WeightFormat::F32 => unsafe {
                let to = panel.as_mut_ptr().cast();
                transpose(isa(), self.staged.as_ptr(), k, PANEL, PANEL, k, to);
            },
            WeightFormat::Bf16 => {
                let (low, high) = self.staged.split_at_mut(PANEL / 2 * k);
                join_bf16(low, high);
                // SAFETY: as above; the joined pairs are only moved.
                unsafe { transpose(isa(), low.as_ptr(), k, PANEL / 2, PANEL / 2, k, panel.as_mut_ptr().cast()) };
            }
            WeightFormat::Q8 | WeightFormat::Q4 => {
                for lane in 0..PANEL {
                    let row = &self.staged[lane * k..(lane + 1) * k];
                    if row.iter().any(|value| !value.is_finite()) {
                        return Err(Error::NotRepresentable { row: index * PANEL + lane, format });
                    }
                    match format {
                        WeightFormat::Q8 => quant::store_q8(row, lane, panel),
                        _ => quant::store_q4(row, lane, panel),
                    }
                }
            }
        }
        Ok(())
    }
}
