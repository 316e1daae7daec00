const box = document.querySelector("input[type=search]");
const entries = [...document.querySelectorAll("[data-text]")];
const groups = [...document.querySelectorAll("[data-group]")];
const none = document.querySelector("#none");
function search() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const e of entries) e.hidden = !words.every((w) => e.dataset.text.includes(w));
  for (const g of groups) g.hidden = !g.querySelector("[data-text]:not([hidden])");
  none.hidden = entries.some((e) => !e.hidden);
}
box.addEventListener("input", search);
document.addEventListener("keydown", (e) => {
  if (e.key === "/" && document.activeElement !== box) { e.preventDefault(); box.focus(); }
});
search();
