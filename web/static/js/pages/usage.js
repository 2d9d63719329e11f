// The charts of the page of usage, by uPlot. Their figures are in data-usage, and in the tables.
import { roundSizeOf, sizeOf } from "../size.js";
import { colourOf } from "../theme_toggle.js";

/** @typedef {{label: string, values: (number|null)[]}} Line */

const root = document.querySelector("[data-usage]");
const usage = root ? JSON.parse(root.dataset.usage) : null;
const height_px = 240;
const series = ["--series-1", "--series-2", "--series-3", "--series-4", "--series-5", "--quiet"];
/** @type {Map<Element, {chart: any}>} */
const drawn = new Map();

const inNumbers = (value) => new Intl.NumberFormat().format(value);
const formats = {
  requests: inNumbers,
  limited: inNumbers,
  latency: (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(0)} ms`,
  bytes: sizeOf,
};

// Which steps an axis may have: those between whose marks there is nothing to count are none.
const powers = (of, most) => Array.from({ length: most }, (_, exponent) => of ** exponent);
const ofCounts = powers(10, 13).flatMap((power) => [power, 2 * power, 5 * power]);
const steps = { requests: ofCounts, limited: ofCounts, bytes: powers(2, 50) };
const marks = { ...formats, bytes: roundSizeOf };

// Days are those of UTC, as they are counted; hours and minutes the reader's own.
const zone = usage?.step === "day" ? "UTC" : undefined;
const isLong = usage !== null && usage.times.at(-1) - usage.times[0] > 36 * 3600;
const onAxis = new Intl.DateTimeFormat(
  undefined,
  isLong ? { day: "numeric", month: "short", timeZone: zone } : { timeStyle: "short", hour12: false },
);
const inLegend = new Intl.DateTimeFormat(
  undefined,
  usage?.step === "day" ? { dateStyle: "medium", timeZone: zone } : { dateStyle: "medium", timeStyle: "short", hour12: false },
);
const shownTime = (form, seconds) => (seconds === null || seconds === undefined ? "–" : form.format(new Date(seconds * 1000)));

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
    tzDate: (seconds) => (zone ? uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC") : new Date(seconds * 1000)),
    cursor: { drag: { x: false, y: false } },
    scales: { y: { range: (_, least, most) => [0, Math.max(most * 1.08, 1e-6, of === "latency" ? 0 : 1)] } },
    axes: [
      { ...axis, values: (_, times) => times.map((time) => shownTime(onAxis, time)) },
      { ...axis, size: 72, incrs: steps[of], values: (_, values) => values.map(marks[of]) },
    ],
    series: [
      { value: (_, time) => shownTime(inLegend, time) },
      ...lines.map((line, number) => ({
        label: line.label,
        stroke: colourOf(series[number]),
        width: 2,
        // Those beside each other are told apart without colours too.
        dash: number % 2 ? [6, 4] : undefined,
        // What was not measured leaves a gap; a measurement between two gaps is a point.
        points: { show: of === "latency" || usage.times.length < 60, size: 5 },
        value: (_, value) => shown(value),
      })),
    ],
  };
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
