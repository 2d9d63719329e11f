// On a phone the links at the side are a strip: it begins where the page is that they are on, and
// fades where there are more of them.
for (const strip of document.querySelectorAll(".side ul")) {
  const here = strip.querySelector("[aria-current]");
  if (here) {
    const [all, one] = [strip.getBoundingClientRect(), here.getBoundingClientRect()];
    strip.scrollLeft += one.left + one.width / 2 - (all.left + all.width / 2);
  }
  const fade = () => {
    const left = strip.scrollWidth - strip.clientWidth - strip.scrollLeft;
    strip.classList.toggle("has-more-before", strip.scrollLeft > 1);
    strip.classList.toggle("has-more-behind", left > 1);
  };
  strip.addEventListener("scroll", fade, { passive: true });
  new ResizeObserver(fade).observe(strip);
}
