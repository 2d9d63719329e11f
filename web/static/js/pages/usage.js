// The charts of the page of usage, by uPlot. Their figures are in data-usage, and in the tables.
import { colourOf } from "../theme_toggle.js";

/** @typedef {{label: string, values: (number|null)[]}} Line */

const root = document.querySelector("[data-usage]");
const usage = root ? JSON.parse(root.dataset.usage) : null;
const height_px = 240;
const series = ["--series-1", "--series-2", "--series-3", "--series-4", "--series-5", "--quiet"];
const units = ["B", "KB", "MB", "GB", "TB"];
/** @type {Map<Element, {chart: any}>} */
const drawn = new Map();

const formats = {
  requests: (value) => new Intl.NumberFormat().format(value),
  latency: (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(0)} ms`,
  bytes: (value) => {
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) {
      value /= 1024;
      unit += 1;
    }
    return `${unit === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`;
  },
};

/** @param {string} of @returns {Line[]} */
function linesOf(of) {
  if (of !== "requests") return usage[of];
  return usage.requests[document.querySelector("[data-drawn-by]:checked").value];
}

/** @param {Element} place */
function draw(place) {
  const of = place.dataset.chart;
  const lines = linesOf(of);
  const ink = colourOf("--quiet");
  const grid = { stroke: colourOf("--line"), width: 1 };
  const shown = (value) => (value === null || value === undefined ? "–" : formats[of](value));
  const axis = { stroke: ink, grid, ticks: grid, font: "12px system-ui, sans-serif" };
  drawn.get(place)?.chart.destroy();
  const options = {
    width: place.clientWidth,
    height: height_px,
    // Days are those of UTC, as they are counted; hours and minutes the reader's own.
    tzDate: usage.step === "day" ? (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC") : undefined,
    cursor: { drag: { x: false, y: false } },
    scales: { y: { range: (_, least, most) => [0, Math.max(most * 1.08, 1e-6, of === "latency" ? 0 : 1)] } },
    axes: [
      axis,
      { ...axis, size: 64, values: (_, values) => values.map(shown) },
    ],
    series: [
      {},
      ...lines.map((line, number) => ({
        label: line.label,
        stroke: colourOf(series[number]),
        width: 2,
        // Those beside each other are told apart without colours too.
        dash: number % 2 ? [6, 4] : undefined,
        points: { show: usage.times.length < 60 },
        value: (_, value) => shown(value),
      })),
    ],
  };
  if (options.tzDate === undefined) delete options.tzDate;
  const chart = new uPlot(options, [usage.times, ...lines.map((line) => line.values)], place);
  drawn.set(place, { chart });
}

function drawAll() {
  for (const place of document.querySelectorAll("[data-chart]")) draw(place);
}

if (usage) {
  drawAll();
  document.addEventListener("theme", drawAll);
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-drawn-by]")) draw(document.getElementById("chart-requests"));
  });
  const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      drawn.get(target)?.chart.setSize({ width: target.clientWidth, height: height_px });
    }
  });
  for (const place of drawn.keys()) watch.observe(place);
}

// A key is chosen: its button is for those without scripts.
const period = document.querySelector("[data-usage-period]");
const apply = period?.querySelector(".usage-key button");
if (apply) {
  apply.hidden = true;
  period.querySelector("select").addEventListener("change", () => period.requestSubmit(apply));
}
