// A search field above each long table: rows that have all of its words stay. The address keeps the words, for links.
(() => {
  const LONG = 30;
  const asked = new URLSearchParams(location.search).get("rows") || "";
  [...document.querySelectorAll("article table")].forEach((table, number) => {
    const rows = [...(table.tBodies[0]?.rows || [])];
    if (rows.length < LONG) return;
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const id = `table-filter-${number}`;
    const bar = document.createElement("p");
    bar.className = "table-filter";
    bar.innerHTML = `<label for="${id}">Search this table</label><input type="search" id="${id}"
      placeholder="words, as: timm closed"><span role="status"></span>`;
    const [input, status] = [bar.querySelector("input"), bar.querySelector("span")];
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, i) => {
        row.hidden = !words.every((word) => texts[i].includes(word));
        shown += !row.hidden;
      });
      status.textContent = `${shown} of ${rows.length} rows`;
    };
    input.addEventListener("input", () => {
      filter();
      const address = new URL(location);
      if (input.value) address.searchParams.set("rows", input.value);
      else address.searchParams.delete("rows");
      history.replaceState(null, "", address);
    });
    (table.closest(".table-wrapper") || table).before(bar);
    input.value = asked;
    filter();
  });
})();
