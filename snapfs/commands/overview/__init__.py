"""All volumes of this host on one page, with what is wrong; and who did what to one of them."""
