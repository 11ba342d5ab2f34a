//! Writing a checkpoint's weights as one safetensors file in either layout: how random weights reach other programs,
//! and tests that load from a disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use janus_spec::Layout;
use serde_json::json;

use super::names::locate;
use super::{Checkpoint, Dtype, TensorDecl, inventory};
use crate::error::{Error, Result};

impl Checkpoint {
    /// Writes `model.safetensors` in `layout` to the folder `dir`, one tensor at a time.
    ///
    /// # Errors
    /// An unreadable tensor, or a file that cannot be written.
    pub fn save_weights(&self, dir: &Path, layout: Layout) -> Result<()> {
        self.save_some(dir, layout, &inventory(&self.spec))
    }

    /// As [`save_weights`](Self::save_weights), of these tensors alone. Tensors that the layout keeps as one must come
    /// together.
    ///
    /// # Errors
    /// As there.
    pub fn save_some(&self, dir: &Path, layout: Layout, wanted: &[TensorDecl]) -> Result<()> {
        let path = dir.join("model.safetensors");
        let failed = |e: std::io::Error| Error::WeightFile { file: path.display().to_string(), reason: e.to_string() };
        // Parts of one tensor of the file follow one another.
        let mut tensors: BTreeMap<String, Vec<(usize, TensorDecl)>> = BTreeMap::new();
        for decl in wanted {
            let location = locate(layout, &decl.name).swap_remove(0);
            tensors.entry(location.name).or_default().push((location.part.map_or(0, |(part, _)| part), decl.clone()));
        }
        let (mut header, mut end) = (serde_json::Map::new(), 0);
        for (name, parts) in &mut tensors {
            parts.sort_by_key(|(part, _)| *part);
            let (_, first) = &parts[0];
            let Some(dtype) = self.dtype_of(&first.name) else {
                return Err(Error::MissingTensor { name: first.name.clone() });
            };
            let mut shape = first.shape.clone();
            shape[0] *= parts.len();
            let begin = end;
            end += shape.iter().product::<usize>() * dtype.size();
            let spelled = match dtype {
                Dtype::F32 => "F32",
                Dtype::F16 => "F16",
                Dtype::Bf16 => "BF16",
            };
            header.insert(name.clone(), json!({"dtype": spelled, "shape": shape, "data_offsets": [begin, end]}));
        }
        let mut text = serde_json::Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut file = BufWriter::new(File::create(&path).map_err(failed)?);
        file.write_all(&(text.len() as u64).to_le_bytes()).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        for (_, decl) in tensors.values().flatten() {
            file.write_all(&self.stored(decl, 0, decl.shape.iter().product())?.1).map_err(failed)?;
        }
        file.flush().map_err(failed)
    }
}
