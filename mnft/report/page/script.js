"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  document.documentElement.classList.add("js");

  // Tables: a button in each heading sorts, the largest number or the first letter first.
  for (const table of all("table.sortable")) {
    const body = table.tBodies[0];
    all("thead th", table).forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.textContent = "";
      heading.append(button);
      button.addEventListener("click", () => {
        const numeric = heading.classList.contains("num");
        const before = heading.getAttribute("aria-sort");
        const down = before ? before === "ascending" : numeric;
        const value = (row) => row.cells[column];
        const compare = (a, b) =>
          numeric
            ? Number(value(a).dataset.v) - Number(value(b).dataset.v)
            : value(a).textContent.trim().localeCompare(value(b).textContent.trim());
        const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * compare(a, b));
        all("th", table.tHead).forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        body.append(...rows);
      });
    });
  }

  // Galleries: a choice, or a cell of a table, shows the pictures of one group.
  for (const gallery of all(".gallery")) {
    const filter = gallery.querySelector(".filter");
    const status = gallery.querySelector(".status");
    const shots = all(".shot", gallery);
    const show = (group) => {
      filter.value = group;
      let shown = 0;
      for (const shot of shots) {
        shot.hidden = group !== "" && shot.dataset.group !== group;
        shown += !shot.hidden;
      }
      status.textContent = group === "" ? "" : `${shown} of ${shots.length} shown`;
    };
    filter.addEventListener("change", () => show(filter.value));
    for (const link of all("a[data-group]")) {
      if (![...filter.options].some((option) => option.value === link.dataset.group)) continue;
      link.addEventListener("click", (event) => {
        event.preventDefault();
        show(link.dataset.group);
        gallery.scrollIntoView();
        filter.focus({ preventScroll: true });
      });
    }
    for (const shot of shots) {
      const button = shot.querySelector(".copy");
      const code = shot.querySelector(".path code");
      button.setAttribute("aria-label", `copy ${code.textContent}`);
      button.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(code.textContent);
          button.textContent = "copied";
        } catch {
          getSelection().selectAllChildren(code); // a file:// page may not use the clipboard
          button.textContent = "press Ctrl-C";
        }
        setTimeout(() => (button.textContent = "copy"), 2000);
      });
    }
  }

  // The chooser: what a threshold keeps.
  for (const chooser of all(".chooser")) {
    const steps = JSON.parse(chooser.querySelector(".steps").textContent);
    const range = chooser.querySelector("input");
    const said = chooser.querySelector(".said");
    const update = () => {
      const { t, away, kept, right } = steps[range.value];
      chooser.querySelector("output").textContent = t;
      said.textContent = `Below ${t}: ${away} of the images go to a person. ` +
        (kept === "0" ? "None is left." : `Of the other ${kept}, ${right} are right.`);
    };
    range.addEventListener("input", update);
    update();
  }

  // On paper everything is open.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    closed.forEach((details) => (details.open = true));
  });
  addEventListener("afterprint", () => closed.forEach((details) => (details.open = false)));
})();
