// Sizes in words of people, as templates write them (pages/render.py): 1536 is "1.5 KiB".
const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];

/** @param {number} bytes */
export function sizeOf(bytes) {
  if (bytes === 1) return "1 byte";
  const { size, unit } = inUnits(bytes);
  return `${size.toFixed(unit === 0 || size >= 100 ? 0 : 1)} ${units[unit]}`;
}

// At the marks of an axis, each of which is a round number: "1.25 MiB", "2 MiB".
/** @param {number} bytes */
export function roundSizeOf(bytes) {
  const { size, unit } = inUnits(bytes);
  return `${Number(size.toFixed(2))} ${units[unit]}`;
}

/** @param {number} bytes */
function inUnits(bytes) {
  let unit = 0;
  let size = bytes;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return { size, unit };
}
