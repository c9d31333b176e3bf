"""The style sheet of the page: light, dark and print, wide and narrow."""

# Kernels and curves use the palette of Okabe and Ito, told apart by people with any
# form of colour blindness; in the dark the same hues are lighter.
CSS = """
:root{--ink:#1d2530;--soft:#5b6675;--faint:#dfe4ea;--paper:#fff;--panel:#f6f8fa;
--blue:#0072b2;--orange:#c85200;--green:#008060;--yellow:#b87d00;--purple:#b0578d;
--grey:#8a939e;--tint:#0072b214;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b5;--faint:#323b47;
--paper:#14191f;--panel:#1c232b;--blue:#56b4e9;--orange:#ff9a4d;--green:#35c99a;
--yellow:#f0c04a;--purple:#e59ac6;--grey:#8a939e;--tint:#56b4e922}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);line-height:1.55;
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:980px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.9rem;line-height:1.2;margin:.2em 0 .3em;letter-spacing:-.01em;
overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.6em 0 .2em;padding-top:.7em;
border-top:1px solid var(--faint)}
h3{font-size:1rem;margin:1.4em 0 .3em}
p{margin:.4em 0 .9em;max-width:68ch}
.lead{font-size:1.12rem}
.note,.legend,figcaption{color:var(--soft);font-size:.9rem}
nav{font-size:.9rem;display:flex;flex-wrap:wrap;gap:.2em 1.1em;margin:1.2em 0}
a{color:var(--blue);text-decoration:none}a:hover{text-decoration:underline}
.cards{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:12px;
margin:1.4em 0}
.card{background:var(--panel);border:1px solid var(--faint);border-radius:10px;
padding:12px 14px;display:flex;flex-direction:column;min-width:0}
.card strong{font-size:1.5rem;line-height:1.25;font-weight:650}
b,strong{white-space:nowrap}
.card .name,.card .detail{font-size:.82rem;color:var(--soft)}
figure{margin:0;min-width:0}
.multiples{display:grid;grid-template-columns:repeat(auto-fit,minmax(270px,1fr));
gap:18px 22px;margin:.6em 0 1em}
.key{display:inline-flex;align-items:center;gap:6px;margin-right:16px;white-space:nowrap}
svg.chart{display:block;width:100%;height:auto;font-size:13px;fill:var(--ink);
overflow:visible}
svg.wide{max-width:600px}
svg.network{max-width:660px}
.multiples svg.chart{font-size:12px}
.grid{stroke:var(--faint);stroke-width:1}.axis{stroke:var(--grey);stroke-width:1}
text{fill:var(--soft)}text.label{fill:var(--ink)}text.small{font-size:12px}
text.tiny{font-size:10px}
text.name{font-weight:600}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.line.thick{stroke-width:3;stroke-linecap:round;opacity:.45}
.band{stroke:none;opacity:.16}
.c0,.train,.k7{--c:var(--blue)}.c1,.validation,.k3{--c:var(--orange)}
.c2,.k5{--c:var(--green)}.c3,.k9{--c:var(--purple)}
.c4{--c:var(--yellow)}.c5{--c:var(--ink)}
.clean,.skip{--c:var(--grey)}.k0{--c:var(--yellow)}.plain{--c:var(--ink)}
.line,.tap{stroke:var(--c)}.dot,.band,.tap{fill:var(--c)}text.name{fill:var(--c)}
.line.clean{stroke-dasharray:7 4}.line.again{stroke-dasharray:2 4}
.line.squeeze{stroke-dasharray:5 3}.line.chosen{stroke-width:4}
.line.bold{stroke-width:3.4}.line.each{stroke-width:1.1;opacity:.75}
.multiples .line.train{stroke-width:1.4}
.multiples .line{stroke-width:1.6}.multiples .line.chosen{stroke-width:3.6}
.wire{stroke:var(--ink);stroke-width:1.6;fill:none}
.wire.thin{stroke-width:1}.bypass{stroke:var(--soft);stroke-width:1.2;fill:none}
.patch,.sum{fill:var(--paper);stroke:var(--soft)}
.pill{fill:var(--paper);stroke:var(--soft)}
.end{fill:var(--panel);stroke:var(--soft)}
.tensor{fill:var(--blue);opacity:.35}
.box{fill:var(--paper);stroke:var(--c);stroke-width:2}.tap{stroke:none}
.scroll{overflow-x:auto;margin:.6em 0 1em}
table{border-collapse:collapse;font-size:.85rem}
.confusion td{width:3.1em;height:2.3em;text-align:center;border:1px solid var(--paper);
padding:0 2px}
.confusion td.right{--c:var(--blue)}.confusion td.wrong{--c:var(--orange)}
.confusion td.right,.confusion td.wrong{
background:color-mix(in srgb,var(--c) calc(var(--p)*1%),var(--panel))}
.confusion td.strong{color:var(--paper);font-weight:600}
.confusion td.sum{color:var(--soft);padding-left:8px;white-space:nowrap;
text-align:right;width:auto}
.confusion th{font-weight:500;text-align:right;padding:0 8px 0 0}
.confusion th.upright{vertical-align:bottom;text-align:center;padding:0 0 6px}
.confusion th.upright span{writing-mode:vertical-rl;transform:rotate(180deg)}
.confusion th.corner{color:var(--soft);font-size:.78rem;vertical-align:bottom;
padding-bottom:6px;white-space:nowrap}
.results{width:100%}.results th{text-align:left;color:var(--soft);font-weight:500}
.results th,.results td{padding:4px 12px 4px 0;border-bottom:1px solid var(--faint)}
.results td{white-space:nowrap}.results .number{text-align:right}
.results th:nth-child(n+5){text-align:right}
.noise th,.noise td{padding:4px 16px 4px 0;border-bottom:1px solid var(--faint);
white-space:nowrap;text-align:right}
.noise th{color:var(--soft);font-weight:500}.noise th:first-child{text-align:left}
.noise th.group{color:var(--ink);font-weight:600;padding-top:14px}
.soft{color:var(--soft)}
code{white-space:nowrap}
pre{background:var(--panel);border:1px solid var(--faint);border-radius:8px;
padding:12px 14px;overflow-x:auto;font-size:.84rem;line-height:1.45}
summary{cursor:pointer;color:var(--blue);margin:.4em 0}
@media (max-width:640px){main{padding:16px 14px 40px}h1{font-size:1.5rem}
.cards{grid-template-columns:repeat(2,minmax(0,1fr))}.card strong{font-size:1.25rem}
svg.wide{font-size:17px}svg.network{font-size:17px}
svg.network text.small{font-size:15.5px}svg .extra{display:none}
.confusion{font-size:.74rem}.confusion td{width:2.3em;height:2.1em}
.confusion th[scope=row]{position:sticky;left:0;background:var(--paper)}}
@media print{body{font-size:11pt}main{max-width:none;padding:0}nav{display:none}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
figure,svg,.card,tr{break-inside:avoid}h2,h3{break-after:avoid}}
"""
