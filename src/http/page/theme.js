// Before anything is drawn: the theme that was chosen here. Without a choice it is the system's.
(() => {
  const KEY = "rerankd-theme";
  const THEMES = ["system", "light", "dark"];
  const root = document.documentElement;

  // A browser that keeps nothing for this page still lets it choose.
  const kept = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  };
  const keep = (theme) => {
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // The choice lasts until the page is left.
    }
  };
  const apply = (theme) => {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
  };

  let theme = THEMES.includes(kept()) ? kept() : "system";
  apply(theme);

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const tell = () => {
      button.textContent = `Theme: ${theme}`;
    };
    tell();
    button.addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      apply(theme);
      keep(theme);
      tell();
    });
  });
})();
