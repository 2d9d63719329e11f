// <div data-status="/status">: how the platform is, now and every while, as long as it is looked at.
const every_ms = 15000;

for (const place of document.querySelectorAll("[data-status]")) {
  const load = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(place.dataset.status, { headers: { Accept: "text/html" } });
      if (answer.ok) place.innerHTML = await answer.text();
      place.classList.toggle("is-stale", !answer.ok);
    } catch {
      place.classList.add("is-stale");
    }
  };
  load();
  setInterval(load, every_ms);
  document.addEventListener("visibilitychange", load);
}
