"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Plots: drawn when they come near the screen; colours follow the page, in light and in dark.
function themed(layout) {
  const look = structuredClone(layout);
  look.paper_bgcolor = look.plot_bgcolor = "rgba(0,0,0,0)";
  look.font = { color: colour("--text"), family: "system-ui, sans-serif" };
  look.legend = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 };
  look.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--accent") };
  look.margin = { l: 60, r: 15, t: 40, b: 50 };
  for (const key of new Set([...Object.keys(look), "xaxis", "yaxis"])) {
    if (/^[xy]axis\d*$/.test(key)) {
      look[key] = { automargin: true, ...look[key], gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--line") };
    }
  }
  return look;
}
function draw(place) {
  const figure = read(place.dataset.figure);
  return Plotly.react(place, figure.data, themed(figure.layout), { responsive: true, displaylogo: false });
}
const plots = [...document.querySelectorAll(".plot")];
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) { near.unobserve(entry.target); draw(entry.target); }
  }
}, { rootMargin: "600px" });
plots.forEach((place) => near.observe(place));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.filter((place) => place.data).forEach(draw));
addEventListener("beforeprint", () => plots.filter((place) => !place.data).forEach(draw));

// Explorer.
const explorer = read("explorer-data");
if (Object.keys(explorer).length) explore();

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function explore() {
  const [dataset, user, view, models] = ["dataset", "user", "view", "models"].map((id) => document.getElementById(id));
  const asked = { "": "", t2f: "titles alone", v2f: "pictures alone" };
  Object.keys(explorer).forEach((name) => dataset.append(make("option", {}, name)));

  const data = () => explorer[dataset.value];
  // The title stands beside it, so that the picture itself needs no words.
  const picture = (item) => item.image ? make("img", { src: item.image, alt: "", loading: "lazy" }) : make("span", { class: "picture" });
  const card = (item) => make("li", { class: "card" }, picture(item), item.title);

  function chooseDataset() {
    user.replaceChildren(...data().users.map((person, place) => make("option", { value: place }, person.user)));
    const preferred = read("shown");
    const rows = data().models.map((model) => model.row);
    const first = preferred.some((row) => rows.includes(row)) ? preferred : rows.slice(0, 4);
    models.replaceChildren(models.firstElementChild, ...rows.map((row) => {
      const box = make("input", { type: "checkbox", value: row });
      box.checked = first.includes(row);
      box.addEventListener("change", show);
      return make("label", {}, box, row);
    }));
    show();
  }

  function best(model, side, target) {
    return make("ol", { class: "top" }, ...model.lists[side][user.value].map((place, number) => {
      const item = data().items[place];
      const text = make("span", {}, item.title);
      if (place === target) text.append(make("span", { class: "badge" }, "✓ the true next item"));
      return make("li", place === target ? { class: "true" } : {}, make("span", {}, `${number + 1}.`), picture(item), text);
    }));
  }

  function show() {
    const person = data().users[user.value];
    const among = data().negatives === "full" ? "all untouched items" : `${data().negatives + 1} candidates`;
    const rank = (model, side) => `True next item: rank ${model.ranks[side][user.value]} among ${among}.`;
    const chosen = [...models.querySelectorAll("input:checked")].map((box) => box.value);
    const columns = data().models.filter((model) => chosen.includes(model.row)).map((model) => {
      const parts = [make("h4", {}, model.row), make("p", {}, rank(model, "")), best(model, "", person.target)];
      for (const side of Object.keys(model.lists).filter((name) => name)) {
        parts.push(make("details", { "data-side": side }, make("summary", {}, `What ${asked[side]} would have recommended`),
          make("p", {}, rank(model, side)), best(model, side, person.target)));
      }
      return make("article", { class: "model" }, ...parts);
    });
    const earlier = person.earlier ? ` (${person.earlier} earlier ones not shown)` : "";
    view.replaceChildren(
      make("h3", {}, `History of ${person.user}, oldest first${earlier}`),
      make("ol", { class: "cards", id: "history" }, ...person.history.map((place) => card(data().items[place]))),
      make("h3", {}, "What they bought next"),
      make("ol", { class: "cards", id: "target" }, card(data().items[person.target])),
      make("div", { class: "models" }, ...columns),
    );
  }

  function step(by) {
    const count = data().users.length;
    user.value = (Number(user.value) + by + count) % count;
    show();
  }
  dataset.addEventListener("change", chooseDataset);
  user.addEventListener("change", show);
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  chooseDataset();
}
