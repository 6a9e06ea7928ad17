"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const list = find("list");
  const radios = [...document.querySelectorAll('input[name="criterion"]')];
  const [decision, sort, search] = ["decision", "sort", "search"].map(find);
  const posts = [...document.querySelectorAll("article.post")].map((element) => ({
    ...data.posts[Number(element.dataset.post)],
    number: Number(element.dataset.post),
    element,
    words: element.querySelector(".text").textContent.toLowerCase(),
    sentences: [...element.querySelectorAll(".s")],
    buttons: [...element.querySelectorAll(".verdict")],
  }));
  let visible = posts;
  let current = -1;

  const criterion = () => {
    const value = radios.find((radio) => radio.checked).value;
    return value === "" ? null : Number(value);
  };

  function highlight(post, chosen) {
    const marks = post.marks[chosen];
    post.sentences.forEach((sentence, row) => {
      const [level, odds] = marks[row] ?? ["", ""];
      sentence.className = level ? `s ${level}` : "s";
      if (odds) sentence.dataset.odds = odds;
      else delete sentence.dataset.odds;
    });
    post.buttons.forEach((button, row) => button.setAttribute("aria-pressed", String(row === chosen)));
  }

  const columns = (post, chosen) => (chosen === null ? post.met.map((_, row) => row) : [chosen]);

  function matches(post, chosen, words) {
    if (words && !post.words.includes(words)) return false;
    const met = columns(post, chosen).some((row) => post.met[row]);
    if (decision.value === "met") return met;
    if (decision.value === "not") return !met;
    if (decision.value === "differs")
      return columns(post, chosen).some((row) => post.label[row] !== null && post.label[row] !== post.met[row]);
    return true;
  }

  function rank(post, chosen) {
    const probabilities = columns(post, chosen).map((row) => post.probability[row]);
    if (sort.value === "high") return -Math.max(...probabilities);
    if (sort.value === "low") return Math.max(...probabilities);
    if (sort.value === "near") return Math.min(...probabilities.map((value) => Math.abs(value - data.threshold)));
    return 0;
  }

  function apply() {
    const chosen = criterion();
    const words = search.value.trim().toLowerCase();
    visible = posts.filter((post) => matches(post, chosen, words));
    visible.sort((a, b) => rank(a, chosen) - rank(b, chosen) || a.number - b.number);
    const shown = new Set(visible);
    posts.forEach((post) => { post.element.hidden = !shown.has(post); });
    list.prepend(...visible.map((post) => post.element));
    current = -1;
    find("nothing").hidden = visible.length > 0;
    find("reset").hidden = visible.length === posts.length && chosen === null;
    find("count").textContent = `${visible.length} of ${posts.length} posts`;
  }

  function choose() {
    const chosen = criterion();
    posts.forEach((post) => highlight(post, chosen ?? post.shown));
    apply();
  }

  function reset() {
    radios[0].checked = true;
    decision.value = "";
    search.value = "";
    choose();
  }

  function focus(post) {
    current = visible.indexOf(post);
    post.element.focus({ preventScroll: true });
    post.element.scrollIntoView({ block: "start" });
  }

  function step(by) {
    const within = document.activeElement?.closest?.("article.post");
    const at = within ? visible.findIndex((post) => post.element === within) : current;
    const next = at < 0 ? (by > 0 ? 0 : visible.length - 1) : at + by;
    if (visible[next]) focus(visible[next]);
  }

  radios.forEach((radio) => radio.addEventListener("change", choose));
  [decision, sort].forEach((field) => field.addEventListener("change", apply));
  search.addEventListener("input", apply);
  find("against").addEventListener("change", (event) => {
    list.classList.toggle("with-against", event.target.checked);
  });
  find("reset").addEventListener("click", reset);
  find("tools").addEventListener("submit", (event) => event.preventDefault());

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".verdict");
    if (button) {
      const element = button.closest("article.post");
      highlight(posts.find((post) => post.element === element), Number(button.dataset.criterion));
    }
    const link = event.target.closest("a[data-criterion]");
    if (link) {
      event.preventDefault();
      const post = posts.find((entry) => `#${entry.element.id}` === link.getAttribute("href"));
      if (!visible.includes(post)) reset();
      highlight(post, Number(link.dataset.criterion));
      focus(post);
    }
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.activeElement === search) {
      search.value = "";
      apply();
      search.blur();
      return;
    }
    const typing = document.activeElement?.matches?.('select, textarea, input:not([type="radio"], [type="checkbox"])');
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !find("keys").checked) return;
    if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
    else if (event.key === "/") search.focus();
    else if (/^[0-9]$/.test(event.key) && radios[Number(event.key)]) {
      radios[Number(event.key)].checked = true;
      choose();
    } else return;
    event.preventDefault();
  });

  const theme = find("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const name = () => { theme.textContent = isDark() ? "Light mode" : "Dark mode"; };
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  system.addEventListener("change", name);
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((details) => { details.open = true; });
  });
  window.addEventListener("afterprint", () => closed.forEach((details) => { details.open = false; }));

  name();
  theme.hidden = false;
  find("tools").hidden = false;
  find("help").open = window.matchMedia("(min-width: 54rem)").matches;
  apply();
})();
