//! Embedding tables: rows looked up by id, kept row-major because nothing multiplies by them.

use crate::Error;
use crate::aligned::AlignedBuf;
use crate::kv::KvDtype;
use crate::packed::bf16_to_f32;

enum Values {
    F32(AlignedBuf<f32>),
    Bf16(AlignedBuf<u16>),
}

/// A row-major table of `rows` x `width`, in f32 or bf16, filled in order.
pub struct Table {
    rows: usize,
    width: usize,
    filled: usize,
    values: Values,
}

impl Table {
    /// An empty table to be filled by `push_row_*`.
    pub fn new(rows: usize, width: usize, dtype: KvDtype) -> Self {
        let values = match dtype {
            KvDtype::F32 => Values::F32(AlignedBuf::zeroed(rows * width)),
            KvDtype::Bf16 => Values::Bf16(AlignedBuf::zeroed(rows * width)),
        };
        Self { rows, width, filled: 0, values }
    }

    /// Adds the next row, rounding to the table's type.
    ///
    /// # Errors
    /// [`Error::Shape`] for a row of another length or one too many.
    pub fn push_row_f32(&mut self, row: &[f32]) -> Result<(), Error> {
        let at = self.next(row.len())?;
        match &mut self.values {
            Values::F32(values) => values[at..at + row.len()].copy_from_slice(row),
            Values::Bf16(values) => {
                for (to, &from) in values[at..].iter_mut().zip(row) {
                    *to = crate::packed::f32_to_bf16(from);
                }
            }
        }
        Ok(())
    }

    /// Adds the next row from bf16.
    ///
    /// # Errors
    /// As [`push_row_f32`](Self::push_row_f32).
    pub fn push_row_bf16(&mut self, row: &[u16]) -> Result<(), Error> {
        let at = self.next(row.len())?;
        match &mut self.values {
            Values::F32(values) => {
                for (to, &from) in values[at..].iter_mut().zip(row) {
                    *to = bf16_to_f32(from);
                }
            }
            Values::Bf16(values) => values[at..at + row.len()].copy_from_slice(row),
        }
        Ok(())
    }

    /// Copies row `index` into `out` as f32.
    ///
    /// # Panics
    /// If `index` is beyond the table or `out` isn't `width` long.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.rows && out.len() == self.width, "table: shapes differ");
        let range = index * self.width..(index + 1) * self.width;
        match &self.values {
            Values::F32(values) => out.copy_from_slice(&values[range]),
            Values::Bf16(values) => {
                for (to, &from) in out.iter_mut().zip(&values[range]) {
                    *to = bf16_to_f32(from);
                }
            }
        }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::F32(values) => values.len() * 4,
            Values::Bf16(values) => values.len() * 2,
        }
    }

    fn next(&mut self, len: usize) -> Result<usize, Error> {
        if len != self.width {
            return Err(Error::Shape { what: "table row", expected: self.width, got: len });
        }
        if self.filled == self.rows {
            return Err(Error::Shape { what: "table rows", expected: self.rows, got: self.rows + 1 });
        }
        self.filled += 1;
        Ok((self.filled - 1) * self.width)
    }
}
