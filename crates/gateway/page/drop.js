// A picture from the person: dropped, pasted, or chosen. It is shown as it will be cropped.

/** The largest picture file that the server takes. */
const MAX_BYTES = 64 << 20;

/** `label` is the zone; `changed(file)` hears of a picture that could be read, `wrong(text)` of one that could not. */
export function drop(label, changed, wrong) {
  const input = label.querySelector("input");
  const canvas = label.querySelector("canvas");
  const words = label.querySelector("span");
  const zone = { file: null, bitmap: null, take, mark };

  async function take(file) {
    if (!file) return;
    if (file.size > MAX_BYTES) return wrong(`${file.name} has more than ${MAX_BYTES >> 20} MiB.`);
    try {
      zone.bitmap = await createImageBitmap(file);
    } catch {
      return wrong(`${file.name} is not a picture that can be read.`);
    }
    zone.file = file;
    words.textContent = `${file.name}, ${zone.bitmap.width} × ${zone.bitmap.height}`;
    canvas.hidden = false;
    mark(null);
    changed(file);
  }

  /** Draws the picture; below the share `kept` of its height it is faint. With null it is drawn whole, uncropped. */
  function mark(kept) {
    if (!zone.bitmap) return;
    const { width, height } = zone.bitmap;
    const side = Math.min(width, height);
    const square = kept !== null;
    const [w, h] = square ? [side, side] : [width, height];
    const scale = Math.min(1, 448 / Math.max(w, h));
    canvas.width = Math.max(1, Math.round(w * scale));
    canvas.height = Math.max(1, Math.round(h * scale));
    const context = canvas.getContext("2d");
    const [x, y] = square ? [(width - side) / 2, (height - side) / 2] : [0, 0];
    context.drawImage(zone.bitmap, x, y, w, h, 0, 0, canvas.width, canvas.height);
    if (square) {
      const edge = Math.round(kept * canvas.height);
      context.fillStyle = "rgb(128 128 128 / 80%)";
      context.fillRect(0, edge, canvas.width, canvas.height - edge);
    }
  }

  input.addEventListener("change", () => take(input.files[0]));
  label.addEventListener("dragover", (event) => {
    event.preventDefault();
    label.classList.add("over");
  });
  label.addEventListener("dragleave", () => label.classList.remove("over"));
  label.addEventListener("drop", (event) => {
    event.preventDefault();
    label.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    if (!label.closest("[hidden]")) take([...event.clipboardData.files].find((file) => file.type.startsWith("image/")));
  });
  return zone;
}
