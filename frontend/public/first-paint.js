// Runs before the first paint, so that a chosen theme or language never flashes by.
(function () {
  var root = document.documentElement;
  try {
    var theme = localStorage.getItem('folio.theme');
    if (theme === 'light' || theme === 'dark') root.dataset.theme = theme;
    var chosen = localStorage.getItem('folio.language');
    var language = chosen || navigator.language || 'en';
    root.lang = language.indexOf('zh') === 0 ? 'zh-CN' : 'en';
  } catch (error) {
    // Storage may be forbidden; the defaults are fine.
  }
})();
