"""HTTP faces of the appliance: routes, wire models and error answers."""
