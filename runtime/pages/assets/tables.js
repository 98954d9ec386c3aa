"use strict";
// Tables that sort, and the list of pairs behind a method.
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  for (const table of all("table.sortable")) {
    for (const cell of table.querySelectorAll("tbody td:not([data-sort])")) {
      const found = cell.textContent.trim().match(/^\(?[-−]?\d[\d,]*\.?\d*(e[-+]?\d+)?/i);
      if (found) cell.setAttribute("data-sort", found[0].replace(/[(,]/g, "").replace("−", "-"));
    }
    new Tablesort(table);
  }
  const method = document.querySelector("#method");
  if (!method) return;
  const search = document.querySelector("#search"), rows = all("#pairs tbody tr");
  function refresh() {
    const words = search.value.toLowerCase();
    let count = 0;
    for (const row of rows) {
      row.hidden = (method.value && row.dataset.method !== method.value) || !row.cells[0].textContent.toLowerCase().includes(words);
      if (!row.hidden) count += 1;
    }
    document.querySelector("#count").textContent = count + (count === 1 ? " line" : " lines");
  }
  for (const input of [method, search]) input.addEventListener("input", refresh);
  for (const button of all("[data-pick]")) {
    button.addEventListener("click", () => {
      method.value = button.dataset.pick;
      refresh();
      document.querySelector("#pairs-title").scrollIntoView();
    });
  }
  refresh();
})();
