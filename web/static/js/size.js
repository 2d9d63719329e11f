// Sizes in words of people, as templates write them (pages/render.py): 1536 is "1.5 KB".
const units = ["bytes", "KB", "MB", "GB", "TB"];

/** @param {number} bytes */
export function sizeOf(bytes) {
  if (bytes === 1) return "1 byte";
  let unit = 0;
  let size = bytes;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${size.toFixed(unit === 0 || size >= 100 ? 0 : 1)} ${units[unit]}`;
}
