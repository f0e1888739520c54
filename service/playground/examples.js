// Examples of our own: brands and items are invented.

export const EXAMPLES = [
  {
    name: "A game controller, and a rule about accessories",
    query: "gaming controller",
    locale: "en-US",
    items: [
      "Voltry Wireless Game Controller with Vibration, Black",
      "Voltry Wired Gamepad for PC",
      "Wall Mount Holder for Controller and Headset",
      "Charging Dock for Two Controllers",
      "Olive Oil 500 ml",
    ].join("\n"),
  },
  {
    name: "A television and its accessories",
    query: "voltry 4k smart tv 55 inch",
    locale: "en-US",
    items: [
      "Voltry 55 inch 4K Smart TV, LED, HDR",
      "Voltry 50 inch 4K LED TV",
      "Voltry 43 inch LED TV",
      "Soundbar with Subwoofer",
      "HDMI Cable, 2 m",
      "Full Motion Wall Mount Bracket",
      "Wall Mount Bracket, Tilting, Steel",
      "Women's Merino Socks",
      "Steel Water Bottle 750 ml",
    ].join("\n"),
  },
  {
    name: "Shoes, as a table with brand and colour",
    query: "trail running shoes women",
    locale: "en-US",
    items: [
      "id,title,brand,color",
      'A1,"Women\'s Trail Running Shoe, Waterproof, Grip Sole",Ostra,teal',
      'A2,"Women\'s Road Running Shoe, Lightweight",Ostra,white',
      "A3,Men's Trail Running Shoe,Fleetrun,black",
      '"A4","Replacement Laces for Trail Running Shoes, 2 Pairs",Ostra,grey',
      'A5,"Women\'s Hiking Socks, Merino, 3 Pairs",Fleetrun,green',
      "A6,Stainless Steel Water Bottle 750 ml,Morningside,steel",
    ].join("\n"),
  },
  {
    name: "Spanish, where nothing is filtered",
    query: "cafetera de cápsulas",
    locale: "es-ES",
    items: [
      "Morningside Cafetera de cápsulas, 15 bares, negra",
      "Cafetera italiana de aluminio, 6 tazas",
      "Cápsulas de café compatibles, 50 unidades",
      "Lámpara de escritorio LED",
    ].join("\n"),
  },
];
